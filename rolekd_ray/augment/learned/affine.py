"""A learned distribution of affine maps, applied by a differentiable sampler."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.augment.learned.edits import Edits

ENTRIES = ("scale_x", "shear_x", "translate_x", "shear_y", "scale_y", "translate_y")
"""What the six entries of a map are, row by row."""


class AffineAugmentor(nn.Module):
    """Moves images by maps θ = I + edit, drawn per image from one learned distribution.

    θ, 2x3, takes places of the view to places of the image, both in half sizes from the centre: a translation of 0.5
    shows what lay a quarter of the image's side to the right, or below. Outside of the image is 0, the dataset's mean
    colour. θ = I gives the image back: to the last bit where its sides are powers of two, elsewhere to the rounding of
    places in float32 (2e-4 of a standard deviation where sides are 224 and neighbours differ by eight).

    Args:
        noise: standard normal numbers per image.
        linear: most that scales differ from 1 and shears from 0. Below 0.5 every map can be inverted and none mirrors.
        translation: most that an image moves, in half sizes.

    Source: the sampler is that of spatial transformers (Jaderberg et al., arXiv 1506.02025, sections 3.2 and 3.3). A
    distribution over maps is what a predecessor's abstract names (OpenReview S90Q6b1kzcf); its form and the bounds are
    a design (unverified, not the paper's).
    """

    def __init__(self, *, noise: int = 8, linear: float = 0.4, translation: float = 0.5):
        super().__init__()
        self.noise = noise
        self.edits = Edits("affine", torch.tensor([linear, linear, translation] * 2), noise)

    def maps(self, noise: Tensor) -> Tensor:
        """Return θ, (N, 2, 3), of standard normal numbers (N, noise)."""
        edits = self.edits(noise).view(-1, 2, 3)
        return torch.eye(2, 3, dtype=edits.dtype, device=edits.device) + edits

    def forward(self, views: Tensor, noise: Tensor) -> Tensor:
        """Return moved views (N, C, H, W), dtype as given; differentiable in both the views and the parameters."""
        return moved(views, self.maps(noise).to(views.dtype))

    def described(self, noise: Tensor) -> dict[str, Tensor]:
        """Return the entries of the maps by name, each (N,)."""
        return dict(zip(ENTRIES, self.maps(noise).flatten(1).unbind(1)))


def moved(views: Tensor, maps: Tensor) -> Tensor:
    """Return views (N, C, H, W) sampled bilinearly where maps (N, 2, 3) point to; 0 outside of the image."""
    # affine_grid refuses a batch of no image, which a worker may have; this is its formula
    height, width = views.shape[-2:]
    x, y = _centres(width, views)[None, None, :, None], _centres(height, views)[None, :, None, None]
    columns = maps[:, None, None, :, :].unbind(-1)
    grid = x * columns[0] + y * columns[1] + columns[2]
    return F.grid_sample(views, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _centres(length: int, like: Tensor) -> Tensor:
    """Return the pixels' centres in half sizes from the middle: -1 and 1 are the outer edges."""
    return (2 * torch.arange(length, dtype=like.dtype, device=like.device) + 1) / length - 1
