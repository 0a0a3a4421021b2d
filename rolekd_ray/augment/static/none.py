"""The agent that changes nothing."""

from torch import Tensor

from rolekd_ray.roles import Role


class NoAugmentation:
    """Returns the images themselves; an `Agent` without settings. `fill` is taken as by the others, and not used."""

    def __init__(self, fill: Tensor):
        self.fill = fill

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return `images`; see `Agent`."""
        return images
