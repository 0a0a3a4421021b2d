"""The worker of a slot: trains one interval of one member at a time, from state file to state file."""

import time
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from rolekd_ray.errors import CheckpointError, StorageError
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.slots.interface import Task
from rolekd_ray.storage import Place
from rolekd_ray.training.batchnorm import share_batchnorm
from rolekd_ray.training.candidates import candidates
from rolekd_ray.training.checkpoint import load_checkpoint, save_checkpoint
from rolekd_ray.training.conditions import describe_images
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.evaluation import agreement, check_finite, predict, score
from rolekd_ray.training.learner import Learner, new_learner
from rolekd_ray.training.losses import trained_roles
from rolekd_ray.training.networks import describe_networks, load_teacher
from rolekd_ray.training.sharding import Sharding


class TrainingWorker:
    """The real worker: distillation on the task's data. Everything it needs is loaded once, on first use.

    Args:
        task: what is trained.
        sharding: this worker's place among those that train one member together; each is given the same jobs. The first
            one decides what storage holds and writes to it.
    """

    def __init__(self, task: Task, sharding: Sharding = Sharding()):  # noqa: B008 - immutable
        self.task, self.sharding = task, sharding
        self.settings = task.settings
        self.device = torch.device("cuda" if task.settings.slots.resources_per_worker.gpus else "cpu")
        self._held: tuple[str, dict[str, Any]] | None = None
        if self.device.type == "cpu":
            # OpenMP's spinning barrier costs 2 to 50 times under neighbours: one thread per whole CPU of the slot
            torch.set_num_threads(max(1, int(self.settings.slots.resources_per_worker.cpus)))

    def train(self, job: Job) -> dict[str, Any]:
        """See `Worker.train`.

        Raises:
            TrainingError: a loss is not finite.
            StorageError: the state cannot be written.
        """
        folder, plain = self.task.states / job.state, job.to_dict(self.task.space)
        stored = self.sharding.decided_by_first(lambda: self._stored_metrics(folder, plain))
        if stored is not None:
            return stored
        started = time.perf_counter()
        learner = self._learner(job)
        loaded = time.perf_counter()
        losses = self.trainer.train(
            learner,
            partial(self._policies, job),
            end_epoch=job.end_epoch,
            total_epochs=job.total_epochs,
            stream=job.state,
        )
        trained = time.perf_counter()
        metrics = losses | self._validate(learner)
        metrics |= self.trainer.view_statistics(learner, partial(self._policies, job), job.end_epoch - 1)
        check_finite(metrics, f"{job.state}: epoch {job.end_epoch - 1}")  # the last step may have broken the weights
        metrics |= {
            "load_seconds": loaded - started,
            "train_seconds": trained - loaded,
            "validation_seconds": time.perf_counter() - trained,
        }
        tree = learner.tree()
        if self.sharding.rank == 0:
            metrics = self._save(folder, tree, plain, metrics)
        self._held = (job.state, tree)
        return metrics

    def _save(
        self, folder: Place, tree: dict[str, Any], job: dict[str, Any], metrics: dict[str, Any]
    ) -> dict[str, Any]:
        try:
            save_checkpoint(folder, tree, self._description | {"job": job, "metrics": metrics})
        except StorageError:
            # After the dispatcher's death two slots may train one job; they write the same, and one of them loses
            stored = self._stored_metrics(folder, job)
            if stored is None:
                raise
            return stored
        return metrics

    def _stored_metrics(self, folder: Place, job: dict[str, Any]) -> dict[str, Any] | None:
        """Return the metrics of this very job if an earlier try finished it: a score that was never logged."""
        try:
            _, description = load_checkpoint(folder)  # all of it: a score counts only if its state can be gone on from
        except CheckpointError:
            return None
        return description["metrics"] if description.get("job") == job else None

    def _learner(self, job: Job) -> Learner:
        """Return the networks the job starts from, built anew: nothing of another member can leak into them."""
        image_set = self.data.image_set
        learner = new_learner(
            self.settings,
            trained_roles(self.settings.distill.losses, self.task.roles),
            num_classes=image_set.num_classes,
            channels=image_set.channels,
            device=self.device,
            key=job.member,
        )
        self.trainer.equip(learner, job.member)
        for network in learner.networks.values():  # after what losses copy of them, which sees whole batches
            share_batchnorm(network, self.settings.training.batchnorm, self.sharding)
        if job.source is not None:
            held, self._held = self._held, None  # training changes these tensors in place: good for one use
            folder = self.task.states / job.source
            tree = held[1] if held and held[0] == job.source else load_checkpoint(folder)[0]
            learner.load(tree, where=str(folder))
        assert learner.epoch == job.start_epoch, (learner.epoch, job)
        return learner

    def _policies(self, job: Job, role: Role, epoch: int) -> list[tuple[float, Policy]]:
        if role in job.policies:
            return [(1.0, job.policies[role])]
        fixed = self.task.fixed
        return fixed.policies_at(role, epoch) if fixed is not None else [(1.0, Policy())]

    def _validate(self, learner: Learner) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        logits: dict[Role, Tensor] = {}
        for role in learner.networks:
            answers = [self._answers(one.network) for one in candidates(learner, self.settings, role)]
            logits[role] = answers[0]  # the role's own network: a peer that does better would agree with itself
            scored = [score(each, self._validation[1]) for each in answers]
            found = max(scored, key=lambda one: one.accuracy).to_dict()
            # The log holds them for every interval: four digits tell apart what a few thousand images can
            found["class_accuracy"] = [None if v is None else round(v, 4) for v in found["class_accuracy"]]
            metrics |= {f"{role}/validation_{name}": value for name, value in found.items() if name != "images"}
        taught = logits.get(Role.STUDENT)
        teacher = logits.get(Role.TEACHER, self._frozen_answers) if taught is not None else None
        if taught is not None and teacher is not None:
            metrics["student/validation_teacher_agreement"] = agreement(taught, teacher)
        return metrics | {"score": metrics[f"{self.task.roles[-1]}/validation_accuracy"]}

    def _answers(self, network: nn.Module) -> Tensor:
        """Return a network's logits on the validation images."""
        trainer = self.trainer
        return predict(network, self._validation[0], trainer.views, dtype=trainer.dtype, sharding=self.sharding)

    @cached_property
    def _frozen_answers(self) -> Tensor | None:
        """The frozen teacher's logits on the validation images, computed once; None without one."""
        teacher = self.trainer.frozen_teacher
        return self._answers(teacher) if teacher is not None else None

    @cached_property
    def data(self) -> TrainingData:
        """The images, opened on first use."""
        return open_training_data(self.settings.data, train=self.settings.data.train)

    @cached_property
    def _validation(self) -> tuple[Tensor, Tensor]:
        held_out = self.data.image_set.subset(self.data.validation)
        return held_out.images.to(self.device), held_out.labels.to(self.device)

    @cached_property
    def _description(self) -> dict[str, Any]:
        roles = trained_roles(self.settings.distill.losses, self.task.roles)
        models = {role: self.settings.network(role).model for role in roles}
        seen = describe_images(self.data, self.settings.data)
        return describe_networks(models, self.data.image_set, self.data.statistics, self.settings.data, seen)

    @cached_property
    def trainer(self) -> Trainer:
        """The epoch loop with the frozen teacher, built on first use."""
        teacher = None
        if self.task.teacher is not None:
            image_set = self.data.image_set
            teacher = load_teacher(
                self.task.teacher,
                combine=self.settings.teacher.combine,
                model=self.settings.teacher.model,
                num_classes=image_set.num_classes,
                channels=image_set.channels,
            )
        return new_trainer(self.settings, self.data, self.task.space, self.device, teacher, self.sharding)
