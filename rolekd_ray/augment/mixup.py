"""mixup: views blended with their partners'."""

import torch
from torch import Tensor

from rolekd_ray.augment.beta import beta_quantiles
from rolekd_ray.augment.mixing import Mix
from rolekd_ray.augment.partners import draw_partners
from rolekd_ray.roles import Role


class Mixup:
    """Blends each view with its partner's: share * own + (1 - share) * partner's, share ~ Beta(alpha, alpha).

    Args:
        alpha: of the Beta distribution, above 0; 1: all shares equally likely, below: mostly near 0 and 1.
        probability: chance that a sample is mixed.
        legacy: mix within the batch, with one share for all of it; `probability` is then the batch's.

    Source: mixup (Zhang et al., 1710.09412), eq. 1, with a share per sample; legacy: TLmixup of 2012.02909.
    """

    def __init__(self, *, alpha: float = 1.0, probability: float = 1.0, legacy: bool = False):
        self.alpha, self.probability, self.legacy = alpha, probability, legacy

    def draw(
        self, batch: Tensor, at: Tensor, *, pool: Tensor, size: tuple[int, int], seed: int, role: Role, epoch: int
    ) -> Mix:
        """Return how samples are mixed; see `Mixing`."""
        with torch.inference_mode():
            partners, numbers = draw_partners(
                "mixup", batch, at, pool=pool, seed=seed, role=role, epoch=epoch, legacy=self.legacy, draws=2
            )
            share = beta_quantiles(numbers[:, 0], self.alpha)
            share = torch.where(numbers[:, 1] < self.probability, share, 1.0)
        return Mix(partners.clone(), share.float(), None)  # made out here: autograd may save them

    def apply(self, views: Tensor, partners: Tensor, mix: Mix) -> Tensor:
        """Return the blended views; see `Mixing`."""
        return torch.lerp(views, partners, (1 - mix.share).to(views.dtype).view(-1, 1, 1, 1))  # one pass over memory
