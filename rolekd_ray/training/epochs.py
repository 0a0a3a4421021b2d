"""The epoch loop: distillation of one learner under policies that change with the epoch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import LearnedSettings, RoleAgents, Settings
from rolekd_ray.errors import DataError
from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.progress import advance
from rolekd_ray.roles import Role
from rolekd_ray.training.batch import Batch, Source, decides
from rolekd_ray.training.chains import Chain, may_hold
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.distiller import evaluating
from rolekd_ray.training.evaluation import check_finite
from rolekd_ray.training.learned import fitted_vae, new_learned
from rolekd_ray.training.learner import Learner
from rolekd_ray.training.losses import new_losses
from rolekd_ray.training.precision import autocast, compute_dtype
from rolekd_ray.training.sharding import ALONE, Sharding
from rolekd_ray.training.steps import Steps
from rolekd_ray.training.view_statistics import IMAGES, roles_seen, view_statistics
from rolekd_ray.training.views import Views

PoliciesAt = Callable[[Role, int], list[tuple[float, Policy]]]
"""(role, epoch) -> weighted policies, as `Schedule.policies_at`."""


@dataclass(frozen=True)
class Trainer:
    """What trainings on one dataset share; `train` changes nothing but the learner it is given.

    `images` (N, C, H, W) uint8 and `labels` (N,) are the whole training set, `indices` the part that is trained on.
    A trained teacher is the distillation target while it learns; else `frozen_teacher` is; with neither, the student
    learns from labels alone, or from itself. With a `sharding` of several workers each of them calls `train`, and all
    end with the same learner; dropout is the one thing that then depends on their number.
    """

    settings: Settings
    images: Tensor
    labels: Tensor
    num_classes: int
    indices: Tensor
    views: Views
    dtype: torch.dtype
    frozen_teacher: nn.Module | None = None
    sharding: Sharding = ALONE

    @cached_property
    def source(self) -> Source:
        """What batches are drawn from."""
        pool = self.indices.sort().values.to(self.images.device)
        return Source(self.images, self.labels, pool, self.num_classes, self.views)

    def equip(self, learner: Learner, key: object) -> None:
        """Give a learner's student its losses and learned agent, with fresh state that follows from seed and `key`.

        Raises:
            ConfigError: their layers do not fit the networks.
        """
        if Role.STUDENT not in learner.networks:
            return
        losses = new_losses(
            self.settings.distill,
            learner.networks[Role.STUDENT],
            self._teacher(learner),
            labels=self.labels,
            trained_on=self.indices,
            num_classes=self.num_classes,
            channels=self.images.shape[1],
            image_size=(self.images.shape[2], self.images.shape[3]),
            key=("losses", self.settings.seed, key),
        )
        learner.add_losses(losses)
        role = decides(self.settings.distill.view_mode)
        agents: RoleAgents = getattr(self.settings.agents, role)
        if self._teacher(learner) is not None and may_hold("learned", agents, self.views.space, role):
            learner.learned = self.new_learned(agents.learned, key)

    def new_learned(self, settings: LearnedSettings, key: object) -> LearnedAgent:
        """Return a fresh learned agent; its initial weights follow from the run's seed and `key`."""
        seed = stream_key("learned", self.settings.seed, key) % 2**63
        return new_learned(settings, self.source, seed=seed, vae=self._vae if "vae" in settings.parts else None)

    @cached_property
    def _vae(self) -> dict[str, Tensor]:
        # By one worker for all: GPUs fit the same twice to other last bits, and views would depend on the worker
        return self.sharding.decided_by_first(
            lambda: {name: value.cpu() for name, value in fitted_vae(self.source, seed=self.settings.seed).items()}
        )

    def train(
        self, learner: Learner, policies_at: PoliciesAt, *, end_epoch: int, total_epochs: int, stream: object
    ) -> dict[str, float]:
        """Train from the learner's epoch to `end_epoch` (exclusive); return the last epoch's mean losses.

        Args:
            learner: trained in place; equipped with fresh losses first, if it has none.
            policies_at: the schedule in force.
            end_epoch: where to stop.
            total_epochs: the length the learning-rate schedule refers to.
            stream: tells trainings of one run apart; order and dropout follow from (run seed, stream, epoch).

        Raises:
            TrainingError: a loss is not finite.
        """
        if learner.losses is None:
            self.equip(learner, stream)
        steps = Steps(
            self.settings,
            learner,
            self._teacher(learner),
            dtype=self.dtype,
            sharding=self.sharding,
            normalisation=(self.views.mean, self.views.std),
        )
        losses: dict[str, float] = {}
        for network in learner.networks.values():
            network.train()
        while learner.epoch < end_epoch:
            losses = self._epoch(learner, steps, policies_at, total_epochs, stream)
            learner.epoch += 1
        if self.settings.training.batchnorm == "local":
            for network in learner.networks.values():
                self.sharding.mean_buffers(network)
        return losses

    def view_statistics(self, learner: Learner, policies_at: PoliciesAt, epoch: int) -> dict[str, float]:
        """Return what the networks make of the views of an epoch; nothing that is trained changes."""
        pool = self.source.pool  # spread over it: folders of images are in order of their classes
        sample = pool[torch.linspace(0, len(pool) - 1, min(IMAGES, len(pool)), device=pool.device).long()]
        teacher = self._teacher(learner)
        networks = learner.networks | ({Role.TEACHER: teacher} if teacher is not None else {})
        at = self.sharding.rows(torch.arange(len(sample), device=sample.device))
        batch = Batch(self.source, sample, at, epoch, self._chains(policies_at, epoch, learner), learner.learned)

        def answers(network: nn.Module, view: Tensor) -> Tensor:
            like = next(network.parameters()).dtype
            with evaluating(network), torch.no_grad(), autocast(self.dtype, view.device):
                return self.sharding.gather(network(view.to(like)).float(), len(sample))

        roles = roles_seen(self.settings.distill.view_mode, frozenset(learner.networks))
        return view_statistics(batch, roles, {role: partial(answers, net) for role, net in networks.items()})

    def _chains(self, policies_at: PoliciesAt, epoch: int, learner: Learner) -> dict[Role, Chain]:
        """Return both roles' chains at an epoch; the learned agent takes over what evolved of its settings."""
        agents = self.settings.agents
        chains = {
            role: self.views.chain(agents.teacher if role == Role.TEACHER else agents.student, policies_at(role, epoch))
            for role in Role
        }
        of_learned = chains[decides(self.settings.distill.view_mode)].learned
        if of_learned is not None and learner.learned is not None:
            learner.learned.configure(**of_learned.model_dump(exclude={"parts"}))
        return chains

    def _teacher(self, learner: Learner) -> nn.Module | None:
        return learner.networks.get(Role.TEACHER, self.frozen_teacher)

    def _epoch(
        self, learner: Learner, steps: Steps, policies_at: PoliciesAt, total_epochs: int, stream: object
    ) -> dict[str, float]:
        epoch = learner.epoch
        chains = self._chains(policies_at, epoch, learner)
        # Scalars belong to an epoch, not to an image: all policies an image may draw carry the same
        scalars = {role: policies_at(role, epoch)[0][1].scalars for role in Role}
        key = stream_key(self.settings.seed, "training", stream, epoch) % 2**63
        # Dropout draws from the global generator, differently on each worker; what losses draw must be the same on all
        of_losses = stream_key(self.settings.seed, "losses", stream, epoch) % 2**63
        generator = torch.Generator(self.images.device).manual_seed(of_losses)
        batches = self._batches(key)
        sums: dict[str, Tensor] = {}
        times: Counter[str] = Counter()
        with torch.random.fork_rng(devices=[self.images.device] if self.images.is_cuda else []):
            torch.manual_seed(key)
            for number, indices in enumerate(batches):
                progress = (epoch + number / len(batches)) / total_epochs
                at = self.sharding.rows(torch.arange(len(indices), device=indices.device))
                batch = Batch(self.source, indices, at, epoch, chains, learner.learned)
                for name, value in steps.take(batch, scalars, progress, generator).items():
                    sums[name] = sums[name] + value if name in sums else value
                    times[name] += 1
                advance()
        means = {name: (value / times[name]).item() for name, value in sums.items()}
        if learner.learned is not None:
            means |= {f"learned/{name}": value for name, value in _of_agent(learner.learned).items()}
        check_finite(means, f"{stream}: epoch {epoch}")
        return means

    def _batches(self, key: int) -> list[Tensor]:
        """Return the epoch's batches of indices; a last batch of one image is left out, BatchNorm cannot use it."""
        generator = torch.Generator().manual_seed(key)
        order = self.indices[torch.randperm(len(self.indices), generator=generator)].to(self.images.device)
        return [batch for batch in order.split(self.settings.training.batch_size) if len(batch) > 1]


def _of_agent(agent: LearnedAgent) -> dict[str, float]:
    """Return where a learned agent stands: its edits, and how its phases went so far."""
    gate = agent.gate
    phases = {
        "phase": float(gate.phase == "augmentor"),
        "phases": float(gate.phases["augmentor"]),
        "augmentor_steps": float(gate.steps["augmentor"]),
        "student_steps": float(gate.steps["student"]),
    }
    return agent.augmentor.parameters_summary() | phases


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
        num_classes=data.image_set.num_classes,
        indices=data.train,
        views=Views(settings.base_augmentation, space, mean, std, seed=settings.seed),
        dtype=dtype,
        frozen_teacher=teacher,
        sharding=sharding,
    )
