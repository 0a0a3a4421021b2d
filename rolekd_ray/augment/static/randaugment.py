"""RandAugment: a fixed number of ops per image, all of one strength."""

import torch
from torch import Tensor

from rolekd_ray.augment.ops import apply_ops
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.augment.static.tables import choose, table
from rolekd_ray.roles import Role


class RandAugment:
    """Applies `ops` random ops to each image, at the same bin, with a random sign; an `Agent`.

    Args:
        fill: colour of pixels that an op uncovers, (C,) uint8.
        ops: how many are applied, one after the other; the same may come twice.
        magnitude: bin of the grid of 31, 0 (weakest) to 30.

    Source: Cubuk et al., arXiv 1909.13719; ops, strengths and their chances are those of torchvision 0.29's
    `v2.RandAugment`, pixels those of `apply_ops`. Colour ops equal torchvision's on tensors within one grey level;
    geometry equals torchvision's on Pillow images on every pixel. On tensors torchvision takes the other neighbour
    half-way between two: of a shear 0.4 % of the values differ (8 % at slope 0.2), of a rotation 0.03 %, measured.
    """

    def __init__(self, fill: Tensor, *, ops: int = 2, magnitude: int = 9):
        self.fill, self.ops, self.magnitude = fill, ops, magnitude

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view; see `Agent`."""
        with torch.inference_mode():
            ops, magnitudes = self._drawn(images, indices, stream_key(seed, role, epoch, "randaugment"))
        return apply_ops(images, ops, magnitudes, ops.new_zeros(*ops.shape, 2), self.fill)

    def _drawn(self, images: Tensor, indices: Tensor, key: int) -> tuple[Tensor, Tensor]:
        ops, magnitudes = table("randaugment", images.shape[-2], images.shape[-1], indices.device)
        return choose(ops, magnitudes[:, self.magnitude], uniforms(key, indices, self.ops))
