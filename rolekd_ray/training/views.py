"""What each role sees of a batch: its agent's view, then the base augmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rolekd_ray.augment.base import BaseAugmentation
from rolekd_ray.augment.policy_agent import PolicyAgent
from rolekd_ray.config import BaseAugmentationSettings
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role


class Views:
    """Makes views of one dataset; a pure function of (run seed, role, epoch, sample index, policy).

    Geometric borders are filled with the dataset's mean colour.
    """

    def __init__(self, settings: BaseAugmentationSettings, space: SearchSpace, mean: Tensor, std: Tensor, *, seed: int):
        self.space, self.seed = space, seed
        self.mean, self.std = mean, std
        self.fill = (mean * 255).round().to(torch.uint8)
        self.base = BaseAugmentation(
            crop_padding_pixels=settings.crop_padding_pixels,
            flip=settings.flip,
            cutout_pixels=settings.cutout_pixels,
            mean=mean,
            std=std,
        )

    def agent(self, policies: Sequence[tuple[float, Policy]]) -> PolicyAgent:
        """Return the agent of weighted policies."""
        return PolicyAgent(policies, self.space, self.fill)

    def view(self, agent: PolicyAgent, images: Tensor, indices: Tensor, *, role: Role, epoch: int) -> Tensor:
        """Return a role's training view.

        Args:
            agent: the role's agent at this epoch.
            images: (N, C, H, W) uint8.
            indices: (N,) int64 places in the dataset; they key the randomness.
            role: whose view.
            epoch: from 0.

        Returns:
            (N, C, H, W) float32, normalised.
        """
        augmented = agent(images, indices, seed=self.seed, role=role, epoch=epoch)
        return self.base(augmented, indices, seed=self.seed, role=role, epoch=epoch)

    def clean(self, images: Tensor) -> Tensor:
        """Return the un-augmented view, (N, C, H, W) float32, normalised: what evaluation sees."""
        return self.base.normalise(images)
