"""Cutout: a square of one colour at a random place of each image."""

from torch import Tensor

from rolekd_ray.augment import colour
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.roles import Role


class Cutout:
    """Paints a square around a random pixel of each image, clipped at the edges; an `Agent`.

    Args:
        fill: the square's colour, (C,) uint8; the dataset's mean colour is about 0 after normalisation.
        pixels: the square's side; an odd one loses a pixel, as in the policies' op.

    Source: DeVries & Taylor, arXiv 1708.04552; as in PBA the square lies half before and half from its centre on.
    """

    def __init__(self, fill: Tensor, *, pixels: int = 16):
        self.fill, self.pixels = fill, pixels

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view; see `Agent`."""
        centres = uniforms(stream_key(seed, role, epoch, "cutout"), indices, 2)
        return colour.cutout(images, indices.new_full((len(images),), self.pixels), centres, self.fill)
