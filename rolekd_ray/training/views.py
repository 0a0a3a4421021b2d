"""What a view is made with: the run's seed, base augmentation and statistics, and a role's chain of agents."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rolekd_ray.augment.agents import Agent
from rolekd_ray.augment.base import BaseAugmentation
from rolekd_ray.augment.policy_agent import PolicyAgent
from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import BaseAugmentationSettings, RoleAgents
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.training.chains import Chain, build_chain


class Views:
    """Makes views of one dataset; a pure function of (run seed, role, epoch, sample index, the agents' settings).

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

    def chain(self, agents: RoleAgents, policies: Sequence[tuple[float, Policy]]) -> Chain:
        """Return a role's chain under weighted policies."""
        return build_chain(agents, policies, self.space, self.fill)

    def view(
        self,
        agents: Agent | Sequence[Agent],
        images: Tensor,
        indices: Tensor,
        *,
        role: Role,
        epoch: int,
        candidate: int = 0,
    ) -> Tensor:
        """Return a role's training view, before anything learned or mixed.

        Args:
            agents: of bytes: one, or several in order.
            images: (N, C, H, W) uint8.
            indices: (N,) int64 places in the dataset; they key the randomness.
            role: whose view.
            epoch: from 0.
            candidate: 0 is the usual view; each other one has draws of its own.

        Returns:
            (N, C, H, W) float32, normalised.
        """
        seed = self.candidate_seed(candidate)
        for agent in agents if isinstance(agents, Sequence) else (agents,):
            images = agent(images, indices, seed=seed, role=role, epoch=epoch)
        return self.base(images, indices, seed=seed, role=role, epoch=epoch)

    def candidate_seed(self, candidate: int) -> int:
        """Return the seed of a candidate's draws; the run's for the usual view."""
        return self.seed if candidate == 0 else stream_key(self.seed, "candidate", candidate)

    def clean(self, images: Tensor) -> Tensor:
        """Return the un-augmented view, (N, C, H, W) float32, normalised: what evaluation sees."""
        return self.base.normalise(images)
