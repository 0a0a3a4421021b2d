"""Final trainings on worker groups, with a real Ray: as one worker would train, whatever dies meanwhile."""

import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest
import ray as ray_api
from ray_helpers import facts, processes, tiny_settings

from rolekd_ray.errors import RolekdError, StorageError
from rolekd_ray.roles import Role
from rolekd_ray.search import final_trainings
from rolekd_ray.search.final_trainings import train_on_ray
from rolekd_ray.search.pipeline import start_run
from rolekd_ray.training.checkpoint import load_checkpoint
from rolekd_ray.training.final import FinalTraining, train_final

SMALL = (
    "search.population_size=2",
    "search.epochs=2",
    "final.epochs=8",
    "training.learning_rate=0.02",
    # With bfloat16, rounding would be a hundred times larger, and could turn decisions
    "training.precision=float32",
)
ONE, TWO = (tiny_settings(*SMALL, f"slots.workers={workers}") for workers in (1, 2))
NETWORKS = ("teacher", "student_alone", "student_plain", "student")


class Killer(Thread):
    """Kills a process of a kind, with SIGKILL, as soon as a training has saved where it stands."""

    def __init__(self, partial: Path, name: str):
        super().__init__(daemon=True)
        self.partial, self.name_of_victim, self.before, self.killed = partial, name, set(), []
        self.start()

    def run(self):
        while not list(self.partial.glob("0*")):
            time.sleep(0.02)
        self.before = processes(self.name_of_victim)
        self.killed = sorted(self.before)[-1:]
        os.kill(self.killed[0], signal.SIGKILL)


def largest_difference(found: Path, expected: Path) -> float:
    """Return the largest difference of two checkpoints' weights, in units of the tensors' largest value."""
    (one,), (other,) = (load_checkpoint(folder)[0]["networks"].values() for folder in (found, expected))
    assert one.keys() == other.keys()
    floats = [name for name in one if one[name].is_floating_point()]
    return max(((one[name] - other[name]).abs().max() / other[name].abs().max()).item() for name in floats)


def assert_all_gone(name: str) -> None:
    deadline = time.monotonic() + 30
    while processes(name):
        assert time.monotonic() < deadline, processes(name)
        time.sleep(0.1)


@pytest.mark.slow
def test_a_whole_run_on_a_group_gives_the_table_of_one_worker_though_a_worker_dies(ray, tmp_path):
    expected = start_run(ONE, storage=tmp_path, name="one", local=True)
    killer = Killer(tmp_path / "two" / "best" / "student_plain.partial", "ray::RayTrainWorker")
    started = time.monotonic()
    found = start_run(TWO, storage=tmp_path, name="two")
    seconds = time.monotonic() - started
    assert killer.killed and len(killer.before) == 2
    assert facts(tmp_path / "two") == facts(tmp_path / "one")
    differences = {
        name: largest_difference(tmp_path / "two/best" / name, tmp_path / "one/best" / name) for name in NETWORKS
    }
    print(f"\n{seconds:.0f} s with one worker killed; largest differences of weights: {differences}")
    # Usually 1e-6. Digits have flat backgrounds: rounding that turns the sign of one such value turns hundreds of
    # pixels, and weights jump by some per cent; so they do, too, when one worker's first weights are shaken by 1e-7.
    assert sorted(differences.values())[1] < 1e-4 and max(differences.values()) < 0.1
    for row, one in zip(found.rows, expected.rows, strict=True):
        assert row["network"] == one["network"]
        for metric in ("validation_accuracy", "test_accuracy"):
            assert row[metric] == pytest.approx(one[metric], abs=0.02)
    assert not list((tmp_path / "two/best").glob("*.partial"))
    assert_all_gone("ray::RayTrainWorker")


@pytest.mark.slow
def test_two_groups_train_side_by_side_and_one_whose_owner_dies_goes_on(ray, tmp_path):
    settings = tiny_settings(*SMALL, "final.epochs=20", "slots.workers=2", "slots.resources_per_worker.cpus=0.5")
    trainings = [FinalTraining(settings, Role.STUDENT, tmp_path / f"s{n}") for n in range(2)]
    killer = Killer(tmp_path / "s0.partial", "ray::GroupSlot")
    done = train_on_ray(trainings, settings.slots, storage=tmp_path / "tune")
    assert len(killer.before) == 2, "one group for each"
    train_final(FinalTraining(settings, Role.STUDENT, tmp_path / "alone"))
    for training, metrics in zip(trainings, done, strict=True):
        assert load_checkpoint(training.folder)[1]["metrics"] == metrics
        assert largest_difference(training.folder, tmp_path / "alone") < 0.1
    started = time.monotonic()
    assert train_on_ray(trainings, settings.slots, storage=tmp_path / "tune") == done
    assert time.monotonic() - started < 2, "what is done needs no group"


@pytest.mark.slow
def test_what_a_group_refuses_is_said_in_its_own_words(ray, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/student.*cannot write the checkpoint"):
        train_on_ray([FinalTraining(TWO, Role.STUDENT, tmp_path / "file" / "student")], TWO.slots, storage=tmp_path)
    assert_all_gone("ray::RayTrainWorker")


class Doomed:
    """Stands for a group: whatever it is asked to train ends it, or fails."""

    def __init__(self, dies: bool):
        self.dies = dies

    def prepare(self):
        return os.getpid()

    def train(self, training):
        if self.dies:
            os._exit(1)
        raise RuntimeError("connection closed by peer")


@pytest.mark.slow
@pytest.mark.parametrize(
    "dies, error, text", [(True, RolekdError, "net: .* death of its group 3 times"), (False, RuntimeError, "by peer")]
)
def test_a_training_that_kills_its_groups_is_given_up(ray, tmp_path, monkeypatch, dies, error, text):
    monkeypatch.setattr(final_trainings, "MOST_DEATHS", 2)
    groups = [ray_api.remote(Doomed).options(num_cpus=0, max_restarts=-1).remote(dies) for _ in range(2)]
    with pytest.raises(error, match=text):
        final_trainings._Shift([FinalTraining(TWO, Role.STUDENT, tmp_path / "net")], groups).work()
