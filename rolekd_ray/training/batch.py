"""One batch of an epoch: labels, and the views that networks ask for."""

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from rolekd_ray.augment.policy_agent import PolicyAgent
from rolekd_ray.distill.views import network_views
from rolekd_ray.roles import Role
from rolekd_ray.training.views import Views


class Batch:
    """All of a batch's labels and indices, and views of this worker's rows, each made once and only if somebody asks.

    Args:
        images: (N, C, H, W) uint8, all.
        labels: (N,) of all images.
        indices: of the batch, (B,).
        rows: of this worker, (b,), a part of `indices`.
        epoch: from 0.
        agents: by role.
        views: makes them.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, indices: Tensor, rows: Tensor, epoch: int,
        agents: Mapping[Role, PolicyAgent], views: Views,
    ):  # fmt: skip
        self.indices, self.labels = indices, labels[indices]
        self.rows, self.images = rows, images[rows]
        self.epoch, self.agents, self.views = epoch, agents, views

    def __len__(self) -> int:
        return len(self.indices)

    def seen_by(self, view_mode: str) -> tuple[Tensor, Tensor]:
        """Return what the student network sees, and what the teacher network sees; see `network_views`."""
        return network_views(
            view_mode,
            student_view=lambda: self.student_view,
            teacher_view=lambda: self.teacher_view,
            clean_view=lambda: self.clean_view,
        )

    @cached_property
    def teacher_view(self) -> Tensor:
        """The teacher role's view of this worker's rows, (b, C, H, W) float32."""
        return self._view(Role.TEACHER)

    @cached_property
    def student_view(self) -> Tensor:
        """The student role's."""
        return self._view(Role.STUDENT)

    @cached_property
    def clean_view(self) -> Tensor:
        """The images, only normalised."""
        return self.views.clean(self.images).contiguous(memory_format=torch.channels_last)

    def _view(self, role: Role) -> Tensor:
        view = self.views.view(self.agents[role], self.images, self.rows, role=role, epoch=self.epoch)
        return view.contiguous(memory_format=torch.channels_last)
