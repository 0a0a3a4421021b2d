"""CutMix: views with a box of their partners'."""

from functools import lru_cache

import torch
from torch import Tensor

from rolekd_ray.augment.beta import beta_quantiles
from rolekd_ray.augment.mixing import Mix
from rolekd_ray.augment.partners import draw_partners
from rolekd_ray.augment.randomness import below
from rolekd_ray.roles import Role


class Cutmix:
    """Puts a box of the partner's view into each view, at the same place.

    For a share ~ Beta(alpha, alpha) the box has sqrt(1 - share) of the image's height and width, rounded down to even
    pixels; its centre is any pixel; it is clipped at the image's edges. The mix's share is that of the pixels left.

    Args:
        alpha: of the Beta distribution, above 0; 1: all areas equally likely before clipping.
        probability: chance that a sample is mixed.
        legacy: mix within the batch, with one box for all of it; `probability` is then the batch's.

    Source: CutMix (Yun et al., 1905.04899), eq. 1 and 2, with a box per sample; legacy: TLCutMix of 2012.02909.
    """

    def __init__(self, *, alpha: float = 1.0, probability: float = 1.0, legacy: bool = False):
        self.alpha, self.probability, self.legacy = alpha, probability, legacy

    def draw(
        self, batch: Tensor, at: Tensor, *, pool: Tensor, size: tuple[int, int], seed: int, role: Role, epoch: int
    ) -> Mix:
        """Return how samples are mixed; see `Mixing`."""
        with torch.inference_mode():
            partners, numbers = draw_partners(
                "cutmix", batch, at, pool=pool, seed=seed, role=role, epoch=epoch, legacy=self.legacy, draws=4
            )
            share = beta_quantiles(numbers[:, 0], self.alpha)
            ratio = torch.where(numbers[:, 1] < self.probability, 1 - share, 0.0).sqrt_()
            sides = []
            for length, numbers_of_side in zip(size, (numbers[:, 2], numbers[:, 3])):
                centre, half = below(numbers_of_side, length), (ratio * (length / 2)).long()
                sides += [(centre - half).clamp_(min=0), (centre + half).clamp_(max=length)]
            top, bottom, left, right = sides
            pixels = size[0] * size[1]
            left_over = (pixels - (bottom - top) * (right - left)).double() / pixels
        return Mix(partners.clone(), left_over.float(), torch.stack(sides, 1))  # made out here: autograd may save them

    def apply(self, views: Tensor, partners: Tensor, mix: Mix) -> Tensor:
        """Return the views with their boxes; see `Mixing`. Pixels are copied (a negative zero may lose its sign)."""
        assert mix.boxes is not None
        channels, height, width = views.shape[1:]
        # With weights of 0 and 1 lerp copies, and on CPUs in a quarter of the time of where
        rows = _inside(mix.boxes[:, :2], height, views).view(-1, 1, height, 1)
        if views.is_contiguous() or not views.is_contiguous(memory_format=torch.channels_last):
            return torch.lerp(views, partners, rows * _inside(mix.boxes[:, 2:], width, views).view(-1, 1, 1, width))
        # A weight per value: a broadcast over the innermost axis would take three times as long
        columns = _inside(mix.boxes[:, 2:], width, views, channels).view(-1, 1, width, channels)
        return torch.lerp(views, partners, (rows.view(-1, height, 1, 1) * columns).permute(0, 3, 1, 2))


def _inside(ends: Tensor, length: int, like: Tensor, times: int = 1) -> Tensor:
    """Return 1 from the first end to before the second, else 0, each `times` times; (n, length * times) from (n, 2)."""
    before = _before(length, times, like.dtype, like.device)
    return before.index_select(0, ends[:, 1]).sub_(before.index_select(0, ends[:, 0]))


@lru_cache(maxsize=16)
def _before(length: int, times: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return for each end 0 … length which places lie before it; (length + 1, length * times), 1 or 0."""
    return torch.ones(length + 1, length).tril_(-1).repeat_interleave(times, 1).to(device, dtype)
