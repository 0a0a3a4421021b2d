"""Every method in the real epoch loop, for a few steps on real photographs, from a teacher that knows a little."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.learner import Learner, new_learner

STEPS, BATCH = 8, 32
CPU = torch.device("cpu")
EVERY = sorted(known_methods())
OFFLINE = [name for name in EVERY if known_methods()[name].needs_teacher and not known_methods()[name].online]
# Two rise with the training, so the loss of a student that stands still would, too; one teaches nothing at first; one
# starts far from 0, at ln σ²
OPTIONS = {"dkd": "{warm_up: 0.0}", "one": "{ramp: 0.0}", "mhgd": "{warm_up: 0.0}",
           "bss": "{temperature: 1.0}", "vid": "{initial_variance: 1.0}"}  # fmt: skip
AFTER_LABELS = {"bss"}  # it attacks images that the student gets right
DRAWN = {"bss", "crd"}  # what these compare with is drawn anew in each step


@dataclass(frozen=True)
class Run:
    """What some steps on one batch, always the same, gave: losses by step, and the teacher before and after."""

    losses: list[dict[str, float]]
    learner: Learner
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]

    def first_and_last(self, name: str) -> tuple[float, float]:
        """The mean of a loss over the first and over the last two steps."""
        found = [losses[name] for losses in self.losses]
        return mean(found[:2]), mean(found[-2:])


def settings_of(data: Path, losses: Mapping[str, float], learning_rate: float = 0.004) -> Settings:
    plain = ["data.image_size=16", "data.train=400", "data.validation=100", "base_augmentation.crop_padding_pixels=0",
             "base_augmentation.flip=false", "training.optimizer=adam", f"training.learning_rate={learning_rate}",
             "training.learning_rate_schedule=constant", "training.weight_decay=0.0", f"training.batch_size={BATCH}",
             "training.precision=float32", "teacher.model=wrn_10_2", "student.model=resnet8"]  # fmt: skip
    weights = ", ".join(f"{name}: {weight!r}" for name, weight in losses.items())
    options = [f"distill.options.{name}={OPTIONS[name]}" for name in losses if name in OPTIONS]
    return load_settings("cifar10_reduced", [f"data.path={data}", *plain, f"distill.losses={{{weights}}}", *options])


def prepared(
    settings: Settings, data: TrainingData, roles: tuple[Role, ...], teacher: nn.Module | None
) -> tuple[Trainer, Learner]:
    trainer = new_trainer(settings, data, settings.search_space(), CPU, None)
    learner = new_learner(settings, roles, num_classes=10, channels=3, device=CPU, key="photographs")
    return replace(trainer, frozen_teacher=teacher), learner


def steps(trainer: Trainer, learner: Learner, count: int) -> list[dict[str, float]]:
    """The losses of so many epochs, one after another, of a training that is so long that they are its beginning."""
    return [
        trainer.train(learner, lambda role, epoch: [(1.0, Policy())], end_epoch=epoch + 1, total_epochs=10**9,
                      stream="photographs")
        for epoch in range(count)
    ]  # fmt: skip


def bits(network: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a network's parameters, buffers and gradients."""
    gradients = {f"{name}.grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: value.clone() for name, value in {**network.state_dict(), **gradients}.items()}


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory) -> Path:
    """The first 500 training photographs, as a folder of Parquet."""
    file, folder = shared_data / "cifar10" / "train.parquet", tmp_path_factory.mktemp("cifar10")
    rows = next(pq.ParquetFile(file).iter_batches(batch_size=500))
    pq.write_table(pa.Table.from_batches([rows]), folder / "train.parquet")
    return folder


@pytest.fixture(scope="module")
def data(photographs, tmp_path_factory) -> TrainingData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROLEKD_CACHE", str(tmp_path_factory.mktemp("cache")))
        return open_training_data(settings_of(photographs, {"cross_entropy": 1.0}).data, train=400)


@pytest.fixture(scope="module")
def teacher(photographs, data) -> nn.Module:
    """Trained for five epochs; as careless as can be: in training mode, to be differentiated, with gradients left."""
    torch.set_num_threads(1)
    settings = settings_of(photographs, {"cross_entropy": 1.0})
    trainer, learner = prepared(settings, data, (Role.TEACHER,), None)
    assert steps(trainer, learner, 5)[-1]["teacher/cross_entropy"] < 1.8  # ln 10 is 2.3
    network = learner.networks[Role.TEACHER].train().requires_grad_()
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    return network


@pytest.fixture(scope="module")
def student(photographs, data) -> nn.Module:
    """Trained for four epochs from labels."""
    trainer, learner = prepared(settings_of(photographs, {"cross_entropy": 1.0}), data, (Role.STUDENT,), None)
    steps(trainer, learner, 4)
    return learner.networks[Role.STUDENT]


@pytest.fixture(scope="module")
def run(photographs, data, teacher, student) -> Callable[..., Run]:
    """Some steps on one batch by the named losses; the same ones are run once."""

    @cache
    def run(losses: tuple[tuple[str, float], ...], learning_rate: float = 0.004) -> Run:
        settings = settings_of(photographs, dict(losses), learning_rate)
        peer = any(known_methods()[name].online == "peer" for name, _ in losses)
        roles = tuple(Role) if peer else (Role.STUDENT,)
        batch = replace(data, train=data.train[:BATCH])
        trainer, learner = prepared(settings, batch, roles, None if peer else copy.deepcopy(teacher))
        if AFTER_LABELS & dict(losses).keys():
            learner.networks[Role.STUDENT].load_state_dict(student.state_dict())
        frozen = trainer.frozen_teacher
        if frozen is None:
            return Run(steps(trainer, learner, STEPS), learner, {}, {})
        for own, given in zip(frozen.parameters(), teacher.parameters(), strict=True):
            own.grad = given.grad.clone()  # a deep copy has none
        before = bits(frozen)
        return Run(steps(trainer, learner, STEPS), learner, before, bits(frozen))

    return run


def alone(name: str) -> tuple[tuple[str, float], ...]:
    return ((name, known_methods()[name].weight),)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if known_methods()[name].online != "peer" and name not in DRAWN]
)
def test_a_method_alone_brings_its_own_loss_down(run, name):
    first, last = run(alone(name)).first_and_last(f"student/{name}")
    assert 0 < last < 0.9 * first


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_of_the_same_draws_a_student_that_learns_has_less_loss_than_one_that_stands_still(run, name):
    learned, still = (
        mean(losses[f"student/{name}"] for losses in run(alone(name), rate).losses[2:]) for rate in (0.004, 1e-9)
    )
    assert 0 < learned < 0.95 * still


@pytest.mark.parametrize("name", OFFLINE)
def test_the_teacher_of_an_offline_method_stays_as_it_was(run, name):
    found = run(alone(name))
    assert len(found.before) > 60  # parameters, buffers, gradients
    assert all(torch.equal(value, found.after[place]) for place, value in found.before.items())
    assert found.before.keys() == found.after.keys()


def test_peers_come_nearer_to_each_other_than_networks_that_learn_apart(run):
    apart, together = (run((("cross_entropy", 1.0), ("mutual", weight))) for weight in (1e-9, 1.0))
    for role in Role:
        assert 0 < together.first_and_last(f"{role}/mutual")[1] < 0.7 * apart.first_and_last(f"{role}/mutual")[1]
        first, last = together.first_and_last(f"{role}/cross_entropy")
        assert 0 < last < 0.9 * first
