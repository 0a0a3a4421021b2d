"""AugMix: an image mixed with several augmented versions of itself."""

import torch
from torch import Tensor

from rolekd_ray.augment.ops import apply_ops
from rolekd_ray.augment.randomness import below, stream_key, uniforms
from rolekd_ray.augment.static.dirichlet import dirichlet
from rolekd_ray.augment.static.tables import choose, table
from rolekd_ray.roles import Role

_DEEPEST = 3
_WHOLE = 1 << 16  # shares are whole numbers of this: sums of share * value are then exact in float32
_CHUNK_VALUES = 1 << 17  # worked on at a time, so that they stay in a core's cache


class AugMix:
    """Mixes each image with `width` versions of it, each made by a chain of random ops; an `Agent`.

    Args:
        fill: colour of pixels that an op uncovers, (C,) uint8.
        severity: strengths are drawn from the weakest so many bins of 10; 1 to 10.
        width: number of chains, 1 or more.
        depth: ops per chain; 0 or less: 1, 2 or 3 by chance, for each chain.
        alpha: of the chains' Dirichlet shares and of the Beta share of the image itself, 0.01 to 100.

    Source: Hendrycks et al., arXiv 1912.02781; ops, strengths and chances are those of torchvision 0.29's `v2.AugMix`
    with all ops, which the paper's leave out brightness, color, contrast and sharpness from. Pixels are those of
    `RandAugment` here: the nearest, where torchvision's default is bilinear. The mix is rounded to the nearest grey
    level, where torchvision rounds down; shares are multiples of 2^-16. The consistency loss is not part of a view.
    """

    def __init__(self, fill: Tensor, *, severity: int = 3, width: int = 3, depth: int = -1, alpha: float = 1.0):
        self.fill, self.severity, self.width, self.depth, self.alpha = fill, severity, width, depth, alpha

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view; see `Agent`."""
        with torch.inference_mode():
            shares, ops, magnitudes = self._drawn(images, indices, stream_key(seed, role, epoch, "augmix"))
            versions = apply_ops(
                images.repeat(self.width, 1, 1, 1), ops, magnitudes, ops.new_zeros(*ops.shape, 2), self.fill
            )
        result = torch.empty_like(images)  # outside of inference mode: autograd may save it
        with torch.inference_mode():
            sources = torch.cat([images, versions]).view(1 + self.width, *images.shape)
            return _mixed(sources, shares, result)

    def _drawn(self, images: Tensor, indices: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return shares (N, 1 + width) in 1/`_WHOLE`, the image's first; ops and magnitudes (width * N, K)."""
        longest = self.depth if self.depth > 0 else _DEEPEST
        draws = uniforms(key, indices, 2 + self.width * (2 + longest))
        share, weights, depths, choices = draws.split([2, self.width, self.width, self.width * longest], dim=1)
        augmented = dirichlet(share, self.alpha)[:, 1:] * dirichlet(weights, self.alpha)
        chains = (augmented * _WHOLE).long()  # rounded down, so that the image's own share is never negative
        shares = torch.cat([_WHOLE - chains.sum(1, keepdim=True), chains], dim=1).float()

        ops, magnitudes = table("augmix", images.shape[-2], images.shape[-1], indices.device)
        chosen, strengths = choose(ops, magnitudes[:, : self.severity], choices)
        if self.depth <= 0:
            late = torch.arange(longest, device=draws.device) > below(depths, _DEEPEST).unsqueeze(2)
            chosen = torch.where(late.view(chosen.shape), -1, chosen)
        # Chain by chain, as the versions lie.
        chosen, strengths = (t.view(-1, self.width, longest).transpose(0, 1) for t in (chosen, strengths))
        return shares, chosen.reshape(-1, longest), strengths.reshape(-1, longest)


def _mixed(sources: Tensor, shares: Tensor, result: Tensor) -> Tensor:
    """Fill `result` (N, C, H, W) uint8 with sources (S, N, C, H, W) uint8 in shares (N, S) of `_WHOLE`."""
    columns = shares.t()[:, :, None, None, None]
    step = max(1, _CHUNK_VALUES // max(1, result[:1].numel()))
    for first in range(0, len(result), step):
        part = slice(first, first + step)
        mix = sources[0, part].float().mul_(columns[0, part])
        for source, column in zip(sources[1:, part], columns[1:, part]):
            mix.add_(source.float().mul_(column))
        # Whole numbers below 2^24 up to here: exact in any order, fused or not.
        result[part] = mix.add_(_WHOLE // 2).mul_(1 / _WHOLE).short().byte()
    return result
