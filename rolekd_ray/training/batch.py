"""One batch of an epoch: labels, and the views that networks ask for."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.augment.mixing import Mix, mixed_targets
from rolekd_ray.distill.views import network_views
from rolekd_ray.roles import Role
from rolekd_ray.training.chains import Chain
from rolekd_ray.training.views import Views


@dataclass(frozen=True, eq=False)
class Source:
    """What batches are drawn from.

    Attributes:
        images: (M, C, H, W) uint8, the whole file's.
        labels: (M,) int64.
        pool: places in it that are trained on, (P,) int64 ascending; mixing draws partners from them.
        num_classes: K.
        views: makes them.
    """

    images: Tensor
    labels: Tensor
    pool: Tensor
    num_classes: int
    views: Views


class Batch:
    """All of a batch's labels and indices, and views of some of its places, each made once and only if somebody asks.

    A view is asked for by the role whose view it is, None for the image that is only normalised, and by the role whose
    mixing counts: where the networks see different views, both are mixed alike, or the teacher would speak of another
    image.

    Args:
        source: the images.
        indices: of the batch, (B,): places in `source`.
        at: this worker's places in the batch, (b,).
        epoch: from 0.
        chains: of both roles.
        learned: the member's learned agent, of the role whose chain has one; None: there is none.
    """

    def __init__(
        self, source: Source, indices: Tensor, at: Tensor, epoch: int, chains: Mapping[Role, Chain],
        learned: LearnedAgent | None = None,
    ):  # fmt: skip
        self.source, self.epoch, self.chains, self.learned = source, epoch, chains, learned
        self.indices, self.at = indices, at
        self.labels = source.labels[indices]
        self._made: dict[object, Tensor] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def teacher_view(self) -> Tensor:
        """The teacher role's view of this worker's places, (b, C, H, W) float32."""
        return self.view(Role.TEACHER, Role.TEACHER)

    @property
    def student_view(self) -> Tensor:
        """The student role's."""
        return self.view(Role.STUDENT, Role.STUDENT)

    def seen_by(
        self, view_mode: str, at: Tensor | None = None, *, candidate: int = 0, plain: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return what the student network sees, and what the teacher network sees; see `network_views`.

        Args:
            view_mode: which role's view feeds which network.
            at: places in the batch, (n,), in any order and number; None: this worker's.
            candidate: which of the draws that picking chooses from.
            plain: without agents: the base augmentation alone.
        """
        by = decides(view_mode)
        return network_views(
            view_mode,
            student_view=lambda: self.view(Role.STUDENT, by, at, candidate=candidate, plain=plain),
            teacher_view=lambda: self.view(Role.TEACHER, by, at, candidate=candidate, plain=plain),
            clean_view=lambda: self.view(None, by, at, candidate=candidate, plain=plain),
        )

    def view(
        self, whose: Role | None, by: Role, at: Tensor | None = None, *, candidate: int = 0, plain: bool = False
    ) -> Tensor:
        """Return a view, (n, C, H, W) float32, `channels_last`; see the class and `seen_by`."""
        mixing = None if plain else self.chains[by].mixing
        key = (whose, by if mixing is not None else None, candidate, plain)
        if at is None and key in self._made:
            return self._made[key]
        made = self._unmixed(whose, self.indices[self.at if at is None else at], candidate, plain)
        if mixing is not None and (mix := self.mix(by, at, candidate=candidate)) is not None:
            made = mixing.apply(made, self._unmixed(whose, mix.partners, candidate, plain), mix)
        made = made.contiguous(memory_format=torch.channels_last)
        if at is None:
            self._made[key] = made
        return made

    def unlearned(self, role: Role) -> Tensor:
        """Return this worker's places as a role's learned agent is given them, (b, C, H, W) float32."""
        return self._unmixed(role, self.indices[self.at], 0, plain=False, learned=False)

    def mix(self, by: Role, at: Tensor | None = None, *, candidate: int = 0) -> Mix | None:
        """Return how places are mixed by a role's chain; None: they are not."""
        mixing, source = self.chains[by].mixing, self.source
        if mixing is None:
            return None
        height, width = source.images.shape[-2:]
        return mixing.draw(
            self.indices, self.at if at is None else at, pool=source.pool, size=(height, width),
            seed=source.views.candidate_seed(candidate), role=by, epoch=self.epoch,
        )  # fmt: skip

    def targets(self, by: Role, at: Tensor | None = None, *, candidate: int = 0) -> Tensor:
        """Return what the labels of mixed places are: (n,) int64, or class probabilities (n, K) float32 if mixed.

        `at` None: all of the batch's.
        """
        if self.chains[by].mixing is None:
            return self.labels if at is None else self.labels[at]
        at = torch.arange(len(self), device=self.indices.device) if at is None else at
        mix = self.mix(by, at, candidate=candidate)
        assert mix is not None
        return mixed_targets(self.source.labels, self.indices[at], mix, self.source.num_classes)

    def _unmixed(
        self, whose: Role | None, indices: Tensor, candidate: int, plain: bool, learned: bool = True
    ) -> Tensor:
        images, views = self.source.images[indices], self.source.views
        if whose is None:
            return views.clean(images)
        chain = self.chains[whose]
        pixels = () if plain else chain.pixels
        made = views.view(pixels, images, indices, role=whose, epoch=self.epoch, candidate=candidate)
        if learned and not plain and chain.learned is not None and self.learned is not None:
            seed = views.candidate_seed(candidate)
            made = self.learned.view(made, indices, seed=seed, role=whose, epoch=self.epoch)
        return made


def decides(view_mode: str) -> Role:
    """Return the role whose view the student network sees: its mixing, picking and learned agent count."""
    return Role.TEACHER if view_mode == "shared_teacher" else Role.STUDENT


def as_probabilities(targets: Tensor, num_classes: int) -> Tensor:
    """Return labels (n,) as class probabilities (n, K) float32; these as they are."""
    return targets if targets.ndim == 2 else one_hot(targets, num_classes).float()
