"""TrivialAugmentWide: one op per image, of any strength."""

import torch
from torch import Tensor

from rolekd_ray.augment.ops import apply_ops
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.augment.static.tables import choose, table
from rolekd_ray.roles import Role


class TrivialAugmentWide:
    """Applies one random op to each image, its strength any of 31, with a random sign; an `Agent` without settings.

    Args:
        fill: colour of pixels that an op uncovers, (C,) uint8.

    Source: Müller & Hutter, arXiv 2103.10158; ops, strengths and their chances are those of torchvision 0.29's
    `v2.TrivialAugmentWide`, pixels as `RandAugment` here describes.
    """

    def __init__(self, fill: Tensor):
        self.fill = fill

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view; see `Agent`."""
        with torch.inference_mode():
            ops, magnitudes = self._drawn(images, indices, stream_key(seed, role, epoch, "trivial_augment_wide"))
        return apply_ops(images, ops, magnitudes, ops.new_zeros(*ops.shape, 2), self.fill)

    def _drawn(self, images: Tensor, indices: Tensor, key: int) -> tuple[Tensor, Tensor]:
        whole = table("trivial_augment_wide", images.shape[-2], images.shape[-1], indices.device)
        return choose(*whole, uniforms(key, indices, 1))
