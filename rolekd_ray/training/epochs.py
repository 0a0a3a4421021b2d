"""The epoch loop: distillation of one learner under policies that change with the epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from rolekd_ray.augment.policy_agent import PolicyAgent
from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import Settings
from rolekd_ray.distill.losses import Outputs, weighted_loss
from rolekd_ray.distill.views import network_views
from rolekd_ray.errors import DataError
from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.progress import advance
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.evaluation import check_finite
from rolekd_ray.training.learner import Learner, learning_rate_factor
from rolekd_ray.training.precision import autocast, compute_dtype
from rolekd_ray.training.sharding import ALONE, Sharding
from rolekd_ray.training.views import Views

PoliciesAt = Callable[[Role, int], list[tuple[float, Policy]]]
"""(role, epoch) -> weighted policies, as `Schedule.policies_at`."""


@dataclass(frozen=True)
class Trainer:
    """What trainings on one dataset share; `train` changes nothing but the learner it is given.

    `images` (N, C, H, W) uint8 and `labels` (N,) are the whole training set, `indices` the part that is trained on.
    A trained teacher is the distillation target while it learns; else `frozen_teacher` is; with neither, the student
    learns from labels alone. With a `sharding` of several workers each of them calls `train`, and all end with the same
    learner; dropout is the one thing that then depends on their number.
    """

    settings: Settings
    images: Tensor
    labels: Tensor
    indices: Tensor
    views: Views
    dtype: torch.dtype
    frozen_teacher: nn.Module | None = None
    sharding: Sharding = ALONE

    def train(
        self, learner: Learner, policies_at: PoliciesAt, *, end_epoch: int, total_epochs: int, stream: object
    ) -> dict[str, float]:
        """Train from the learner's epoch to `end_epoch` (exclusive); return the last epoch's mean losses.

        Args:
            learner: trained in place.
            policies_at: the schedule in force.
            end_epoch: where to stop.
            total_epochs: the length the learning-rate schedule refers to.
            stream: tells trainings of one run apart; order and dropout follow from (run seed, stream, epoch).

        Raises:
            TrainingError: a loss is not finite.
        """
        losses: dict[str, float] = {}
        for network in learner.networks.values():
            network.train()
        while learner.epoch < end_epoch:
            losses = self._epoch(learner, policies_at, total_epochs, stream)
            learner.epoch += 1
        if self.settings.training.batchnorm == "local":
            for network in learner.networks.values():
                self.sharding.mean_buffers(network)
        return losses

    def _epoch(self, learner: Learner, policies_at: PoliciesAt, total_epochs: int, stream: object) -> dict[str, float]:
        epoch = learner.epoch
        weighted = {role: policies_at(role, epoch) for role in Role}
        agents = {role: self.views.agent(policies) for role, policies in weighted.items()}
        # Scalars belong to an epoch, not to an image: all policies an image may draw carry the same
        scalars = {role: policies[0][1].scalars for role, policies in weighted.items()}
        key = stream_key(self.settings.seed, "training", stream, epoch) % 2**63
        batches = self._batches(key)
        sums: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[self.images.device] if self.images.is_cuda else []):
            torch.manual_seed(key)  # for dropout; nothing else draws from the global generator
            for number, indices in enumerate(batches):
                progress = (epoch + number / len(batches)) / total_epochs
                batch = _Batch(self, agents, indices, epoch)
                for role in learner.networks:
                    self._set_optimizer(learner.optimizers[role], scalars[role], progress)
                    total, parts = self._loss(role, learner, batch, scalars[role])
                    learner.optimizers[role].zero_grad(set_to_none=True)
                    total.backward()
                    self.sharding.sum_gradients(learner.networks[role])
                    learner.optimizers[role].step()
                    for name, value in ({"loss": total.detach()} | parts).items():
                        name = f"{role}/{name}"
                        sums[name] = sums[name] + value if name in sums else value
                advance()
        means = {name: (value / len(batches)).item() for name, value in sums.items()}
        check_finite(means, f"{stream}: epoch {epoch}")
        return means

    def _batches(self, key: int) -> list[Tensor]:
        """Return the epoch's batches of indices; a last batch of one image is left out, BatchNorm cannot use it."""
        generator = torch.Generator().manual_seed(key)
        order = self.indices[torch.randperm(len(self.indices), generator=generator)].to(self.images.device)
        return [batch for batch in order.split(self.settings.training.batch_size) if len(batch) > 1]

    def _set_optimizer(self, optimizer: torch.optim.Optimizer, scalars: Mapping[str, float], progress: float) -> None:
        settings = self.settings.training
        factor = learning_rate_factor(settings.learning_rate_schedule, progress)
        for group in optimizer.param_groups:
            group["lr"] = scalars.get("learning_rate", settings.learning_rate) * factor
            group["weight_decay"] = scalars.get("weight_decay", settings.weight_decay)

    def _loss(
        self, role: Role, learner: Learner, batch: "_Batch", scalars: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a role's total loss and its parts on one batch."""
        if role == Role.TEACHER:
            logits = self._forward(learner.networks[role], batch.teacher_view, batch)
            return weighted_loss({"cross_entropy": 1.0}, Outputs(logits, None, batch.labels))
        settings = self.settings.distill
        teacher = learner.networks.get(Role.TEACHER, self.frozen_teacher)
        if teacher is None:
            logits = self._forward(learner.networks[role], batch.student_view, batch)
            return weighted_loss({"cross_entropy": 1.0}, Outputs(logits, None, batch.labels))
        for_student, for_teacher = network_views(
            settings.view_mode,
            student_view=lambda: batch.student_view,
            teacher_view=lambda: batch.teacher_view,
            clean_view=lambda: batch.clean_view,
        )
        targets = self._targets(teacher, for_teacher, batch)
        logits = self._forward(learner.networks[role], for_student, batch)
        weights = {name: scalars.get(f"losses.{name}", weight) for name, weight in settings.losses.items()}
        temperature = scalars.get("temperature", settings.temperature)
        return weighted_loss(weights, Outputs(logits, targets, batch.labels, temperature))

    def _forward(self, network: nn.Module, view: Tensor, batch: "_Batch") -> Tensor:
        """Return the whole batch's logits; the view holds this worker's rows."""
        with autocast(self.dtype, view.device):
            logits = network(view)
        return self.sharding.gather(logits, len(batch.labels))

    def _targets(self, teacher: nn.Module, view: Tensor, batch: "_Batch") -> Tensor:
        """Return the teacher's logits in evaluation mode, so that its BatchNorm buffers stay untouched."""
        training = teacher.training
        teacher.eval()
        with torch.no_grad():
            logits = self._forward(teacher, view.to(_dtype_of(teacher)), batch)
        teacher.train(training)
        return logits


class _Batch:
    """One batch: all its labels, and views of this worker's rows, each made once and only if some network asks."""

    def __init__(self, trainer: Trainer, agents: Mapping[Role, PolicyAgent], indices: Tensor, epoch: int):
        self.trainer, self.agents, self.epoch = trainer, agents, epoch
        self.labels = trainer.labels[indices]
        self.indices = trainer.sharding.rows(indices)
        self.images = trainer.images[self.indices]

    def _view(self, role: Role) -> Tensor:
        views = self.trainer.views
        view = views.view(self.agents[role], self.images, self.indices, role=role, epoch=self.epoch)
        return view.contiguous(memory_format=torch.channels_last)

    @cached_property
    def teacher_view(self) -> Tensor:
        return self._view(Role.TEACHER)

    @cached_property
    def student_view(self) -> Tensor:
        return self._view(Role.STUDENT)

    @cached_property
    def clean_view(self) -> Tensor:
        return self.trainer.views.clean(self.images).contiguous(memory_format=torch.channels_last)


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def new_trainer(
    settings: Settings,
    data: TrainingData,
    space: SearchSpace,
    device: torch.device,
    teacher: torch.nn.Module | None,
    sharding: Sharding = ALONE,
) -> Trainer:
    """Return the epoch loop for a run's data; a frozen teacher is folded and put into the compute format.

    Raises:
        DataError: there are too few images for one batch, so nothing would be trained.
    """
    if len(data.train) < 2:
        raise DataError(f"{data.image_set.name}: got {len(data.train)} training images; expected at least 2")
    dtype = compute_dtype(settings.training.precision, device)
    mean, std = (value.to(device) for value in data.statistics)
    if teacher is not None:
        teacher = fold_batchnorm(teacher).to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trainer(
        settings=settings,
        images=data.image_set.images.to(device),
        labels=data.labels.to(device),
        indices=data.train,
        views=Views(settings.base_augmentation, space, mean, std, seed=settings.seed),
        dtype=dtype,
        frozen_teacher=teacher,
        sharding=sharding,
    )
