"""Final trainings: one network trained to the end under a schedule, on all images that are not held out."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.config import Settings
from rolekd_ray.errors import CheckpointError
from rolekd_ray.files import delete_tree
from rolekd_ray.models.residual import ResidualSum
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, schedule_to_dict
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, children, places
from rolekd_ray.training.batchnorm import share_batchnorm
from rolekd_ray.training.candidates import candidates
from rolekd_ray.training.checkpoint import load_checkpoint, read_description, save_checkpoint
from rolekd_ray.training.conditions import describe_images
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.evaluation import Evaluation, check_finite, evaluate
from rolekd_ray.training.learner import Learner, load_weights, new_learner, new_optimizer
from rolekd_ray.training.losses import trained_roles
from rolekd_ray.training.networks import describe_networks, load_network, load_teacher
from rolekd_ray.training.sharding import ALONE, Sharding


@dataclass(frozen=True)
class FinalTraining:
    """What to train.

    `schedule` None: no policy. `teacher` None: from labels alone; several checkpoints: from their ensemble, combined as
    the settings say. `folder` gets the checkpoint; while the training goes on, `folder.partial` holds where it stands.
    `residual_of`: a finished student that stays as it is, while the assistant of `student.model`, which then reads
    `<its model>+<assistant>`, learns what it lacks; the checkpoint holds both.
    """

    settings: Settings
    role: Role
    folder: Place
    schedule: Schedule | None = None
    teacher: Place | tuple[Place, ...] | None = None
    residual_of: Place | None = None

    @property
    def epochs(self) -> int:
        """Length of the training."""
        return self.settings.final_epochs

    @property
    def trained_roles(self) -> tuple[Role, ...]:
        """Whose networks are trained: a student's peer with it, whatever role it is for."""
        return trained_roles(self.settings.distill.losses, (self.role,))

    def plan(self, known: Mapping[Place, Any] | None = None) -> dict[str, Any]:
        """Return what the result depends on, as plain data: equal plans give equal networks.

        Up to rounding where the number of workers differs; with `training.batchnorm: local` by more.

        Args:
            known: plans of checkpoints that need not be there yet.
        """
        settings = self.settings.model_dump(mode="json", exclude={"source", "search", "slots", "final", "space"})
        plan = {
            "role": str(self.role),
            "epochs": self.epochs,
            "train": self.settings.final.train,
            "schedule": schedule_to_dict(self.schedule) if self.schedule is not None else None,
            "teacher": _plans_of(self.teacher, known or {}),
            "settings": settings,
        }
        if self.residual_of is not None:
            plan["residual_of"] = _plans_of(self.residual_of, known or {})
        return json.loads(json.dumps(plan))  # as a checkpoint gives it back: keys of JSON are text

    def finished(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        """Return the metrics of a checkpoint that this very plan led to; None if there is none."""
        try:
            _, description = load_checkpoint(self.folder)  # all of it: a damaged one is not finished
        except CheckpointError:
            return None
        return description["metrics"] if description.get("plan") == plan else None


def train_final(training: FinalTraining, sharding: Sharding = ALONE) -> dict[str, Any]:
    """Train a network to the end, or take it from its checkpoint; return the checkpoint's metrics.

    A training that was cut short goes on from its last saved epoch and ends with the same weights; up to rounding, if
    there are more or fewer workers now.

    Args:
        training: what to train.
        sharding: this worker's place among those that train it together; each calls this. The first one decides what
            storage holds and writes to it.

    Raises:
        TrainingError: a loss is not finite; on all workers alike.
        StorageError: the checkpoint cannot be written.
    """
    plan = sharding.decided_by_first(training.plan)
    metrics = sharding.decided_by_first(lambda: training.finished(plan))
    if metrics is not None:
        return metrics
    device = torch.device("cuda" if training.settings.slots.resources_per_worker.gpus else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(training.settings.slots.resources_per_worker.cpus)))
    data = open_training_data(training.settings.data, train=training.settings.final.train)
    learner, trainer, seconds = _begin(training, data, device, plan, sharding)
    schedule = training.schedule.stretched(training.epochs) if training.schedule is not None else None
    while learner.epoch < training.epochs:
        started = time.perf_counter()
        end = min(learner.epoch + training.settings.search.perturbation_interval_epochs, training.epochs)
        trainer.train(
            learner,
            schedule.policies_at if schedule is not None else lambda role, epoch: [(1.0, Policy())],
            end_epoch=end,
            total_epochs=training.epochs,
            stream=f"final {training.role}",  # the arms of a comparison see the same order of images
        )
        seconds += time.perf_counter() - started
        if end < training.epochs and sharding.rank == 0:
            _save_partial(training, learner, {"plan": plan, "seconds": seconds})
    state, found = _best(training, learner, data, trainer)
    check_finite(found.to_dict(), f"final {training.role}: epoch {training.epochs - 1}")
    metrics = {f"validation_{name}": value for name, value in found.to_dict().items()} | {"seconds": seconds}
    if sharding.rank == 0:
        _save(training, state, data, {"plan": plan, "metrics": metrics}, learner.learned)
    return metrics


def _best(
    training: FinalTraining, learner: Learner, data: TrainingData, trainer: Trainer
) -> tuple[Mapping[str, Tensor], Evaluation]:
    """Return weights and metrics of the network to keep: where several could be it, the best on validation images."""
    held_out = data.image_set.subset(data.validation)
    images, labels = held_out.images.to(trainer.images.device), held_out.labels.to(trainer.images.device)
    found = []
    for candidate in candidates(learner, training.settings, training.role):
        metrics = evaluate(
            candidate.network,
            images,
            labels,
            trainer.views,
            dtype=torch.float32,  # as `evaluate` has it
            sharding=trainer.sharding,
        )
        found.append((candidate.state, metrics))
    return max(found, key=lambda one: one[1].accuracy)


def _save(
    training: FinalTraining, state: Mapping[str, Tensor], data: TrainingData, about: dict[str, Any],
    learned: LearnedAgent | None,
) -> None:  # fmt: skip
    """Save the finished network and its learned agent; then what was needed to go on is not needed any more."""
    models = {training.role: training.settings.network(training.role).model}
    settings = training.settings.data
    seen = describe_images(data, settings)
    description = describe_networks(models, data.image_set, data.statistics, settings, seen)
    teachers = [str(where.absolute()) for where in places(training.teacher)]
    teacher: dict[str, Any] = {"teacher": teachers[0] if len(teachers) == 1 else teachers or None}
    if len(teachers) > 1:
        teacher["combine"] = training.settings.teacher.combine
    tree: dict[str, Any] = {"networks": {str(training.role): dict(state)}}
    if learned is not None:
        tree["learned"] = learned.tree()
    save_checkpoint(training.folder, tree, description | about | teacher)
    delete_tree(_partial(training))


def _freeze_student(learner: Learner, folder: Place, settings: Settings) -> None:
    """Put a finished student into a sum of two networks, whose assistant alone is trained from now on."""
    network = learner.networks[Role.STUDENT]
    assert isinstance(network, ResidualSum), settings.student.model
    student, _ = load_network(folder, Role.STUDENT)
    load_weights(network.student, student.state_dict(), where=str(folder))
    network.freeze_student()
    learner.optimizers[Role.STUDENT] = new_optimizer(network, settings.training)


def _plans_of(where: Place | tuple[Place, ...] | None, known: Mapping[Place, Any]) -> Any:
    """Return the plan that led to a checkpoint, or its place, if others made it; of several, a list."""
    found = [
        known[folder] if folder in known else read_description(folder).get("plan", str(folder))
        for folder in places(where)
    ]
    return found if isinstance(where, tuple) and len(found) > 1 else found[0] if found else None


def _partial(training: FinalTraining) -> Place:
    return training.folder.with_name(f"{training.folder.name}.partial")


def _save_partial(training: FinalTraining, learner: Learner, description: dict[str, Any]) -> None:
    """Save where a training stands under a new name, then delete the last one: at no moment is there none."""
    folder = _partial(training) / f"{learner.epoch:06d}"
    save_checkpoint(folder, learner.tree(), description)
    for other in folder.parent.iterdir():
        if other != folder:
            delete_tree(other)


def _newest_partial(training: FinalTraining, plan: dict[str, Any]) -> tuple[dict[str, Any], float, str] | None:
    """Return the newest whole state of this very plan, the seconds it took and where it lies; None if there is none."""
    for folder in reversed(children(_partial(training), "[0-9]*")):
        try:
            tree, description = load_checkpoint(folder)
        except CheckpointError:
            continue
        if description.get("plan") == plan:
            return tree, description["seconds"], str(folder)
    return None


def _begin(
    training: FinalTraining, data: TrainingData, device: torch.device, plan: dict[str, Any], sharding: Sharding
) -> tuple[Learner, Trainer, float]:
    """Return learner, epoch loop and the seconds spent so far: fresh, or from where an earlier try was stopped."""
    image_set = data.image_set
    learner = new_learner(
        training.settings,
        training.trained_roles,
        num_classes=image_set.num_classes,
        channels=image_set.channels,
        device=device,
        key="final",
    )
    if training.residual_of is not None:
        _freeze_student(learner, training.residual_of, training.settings)
    teacher = None
    if training.teacher is not None:
        teacher = load_teacher(
            training.teacher,
            combine=training.settings.teacher.combine,
            num_classes=image_set.num_classes,
            channels=image_set.channels,
        )
    # Without a schedule nothing evolves, so no chain but the settings' will come
    without = replace(training.settings.search_space(), choices=())
    space = training.schedule.space if training.schedule is not None else without
    trainer = new_trainer(training.settings, data, space, device, teacher, sharding)
    trainer.equip(learner, "final")
    for network in learner.networks.values():  # after what losses copy of them, which sees whole batches
        share_batchnorm(network, training.settings.training.batchnorm, sharding)
    # Whole, not by name: a partial state may be gone again before another node's file system shows it
    newest = sharding.decided_by_first(lambda: _newest_partial(training, plan))
    seconds = 0.0
    if newest is not None:
        tree, seconds, where = newest
        learner.load(tree, where=where)
    return learner, trainer, seconds
