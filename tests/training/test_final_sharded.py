"""Final trainings that several workers share: the weights of one, whoever is killed, however many go on."""

import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sharding_cases import in_group, start_group
from training_helpers import die_at, same_tree, some_policy, tiny_settings

from rolekd_ray.errors import CheckpointError
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.training import final
from rolekd_ray.training.checkpoint import load_checkpoint
from rolekd_ray.training.epochs import Trainer
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.sharding import Sharding

EPOCHS = 3
# 50 images in batches of 20: the last batch of an epoch is another one than the others
SETTINGS = tiny_settings(
    f"final.epochs={EPOCHS}", "final.train=50", "training.precision=float32", "training.learning_rate=0.02"
)


def student(folder: Path) -> FinalTraining:
    """A student distilled by a frozen teacher that lies beside it."""
    segments = {role: (Segment(EPOCHS, some_policy(SETTINGS, role)),) for role in Role}
    schedule = Schedule(SETTINGS.search_space(), segments)
    return FinalTraining(SETTINGS, Role.STUDENT, folder, schedule, folder.parent / "teacher")


def whole(folder: Path, sharding: Sharding) -> list[dict[str, Any]]:
    """Train teacher and student; return their metrics."""
    teacher = FinalTraining(SETTINGS, Role.TEACHER, folder / "teacher")
    return [train_final(training, sharding) for training in (teacher, student(folder / "student"))]


def killed(folder: Path, sharding: Sharding) -> None:
    """Train two networks, then a third whose first worker is killed as its second state is about to appear."""
    whole(folder, sharding)
    if sharding.rank == 0:
        die_at(1, ["os.rename"], str(folder / "killed"))
    train_final(student(folder / "killed"), sharding)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    whole(folder, Sharding())
    return folder


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Teacher and student by two workers, a third training that was killed, and a copy of where it stood."""
    folder = tmp_path_factory.mktemp("shared")
    processes, _ = start_group(2, partial(killed, folder))
    for process in processes:
        process.join(120)
    assert processes[0].exitcode == -signal.SIGKILL and processes[1].exitcode not in (0, None)
    assert not (folder / "killed").exists() and [p.name for p in (folder / "killed.partial").glob("0*")] == ["000001"]
    shutil.copytree(folder / "killed.partial", folder / "fewer.partial")
    return folder


def networks(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder)[0]["networks"]


def assert_close(found: Path, expected: Path) -> None:
    for role, network in networks(expected).items():
        for name, value in network.items():
            torch.testing.assert_close(networks(found)[role][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_two_workers_end_with_the_weights_and_metrics_of_one(alone, shared, name):
    assert_close(shared / name, alone / name)
    found, expected = (load_checkpoint(folder / name)[1] for folder in (shared, alone))
    for metric in ("validation_accuracy", "validation_loss", "validation_images"):
        assert found["metrics"][metric] == pytest.approx(expected["metrics"][metric], rel=1e-3)


def test_killed_between_partial_states_and_gone_on_with_nothing_differs(shared):
    metrics = in_group(2, partial(again, shared))
    assert same_tree(networks(shared / "killed"), networks(shared / "student"))
    assert not (shared / "killed.partial").exists()
    stored = load_checkpoint(shared / "killed")[1]["metrics"]
    assert all(found == stored for found, _ in metrics), "what the first worker finds in storage, all return"
    assert [trained for _, trained in metrics] == [[1, 2], [1, 2]]


def again(folder: Path, sharding: Sharding) -> tuple[dict[str, Any], list[int]]:
    """Go on with the killed training, then ask for it again; return the stored metrics and the epochs trained."""
    epochs, real = [], Trainer._epoch

    def spy(self, learner, *rest):
        epochs.append(learner.epoch)
        return real(self, learner, *rest)

    Trainer._epoch = spy
    if sharding.rank == 1:  # a node whose file system is late
        final.load_checkpoint = late
    train_final(student(folder / "killed"), sharding)
    return train_final(student(folder / "killed"), sharding), epochs


def late(folder: Path) -> Any:
    raise CheckpointError(f"{folder}: no checkpoint")


def test_fewer_workers_may_go_on(alone, shared):
    train_final(student(shared / "fewer"))
    assert_close(shared / "fewer", alone / "student")
