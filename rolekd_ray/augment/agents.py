"""What an agent is: a role's way of turning a batch into its view."""

from typing import Protocol

from torch import Tensor

from rolekd_ray.roles import Role


class Agent(Protocol):
    """Turns images into one role's view of them, up to the last step (`BaseAugmentation`) that makes floats."""

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view: a pure function of seed, role, epoch, the sample and the agent's settings.

        Batch size, order, worker and device change no bit of a sample's view. `images` is not written to.

        Args:
            images: (N, C, H, W) uint8, C = 1 or 3.
            indices: each image's place in its dataset, (N,) int64, on the same device.
            seed: the run's seed.
            role: whose view this is.
            epoch: epoch of the training, from 0.

        Returns:
            (N, C, H, W) uint8; may be `images` itself where nothing changes.
        """
        ...
