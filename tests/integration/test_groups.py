"""Slots of several workers: Ray Train groups that live through the search, and what happens when parts of them die."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import ray as ray_api
import torch
from ray_helpers import BOTH, NoOpWorker, facts, lineage, processes, rule, tiny_settings, weights

from rolekd_ray.errors import ConfigError, StorageError
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_log
from rolekd_ray.search.population_search import search_population
from rolekd_ray.search.slot_pool import SlotPool
from rolekd_ray.search.tune_search import run_on_ray

WORKERS = "ray::RayTrainWorker"


class Watcher:
    """Notes which processes train, and does something after the n-th score."""

    def __init__(self, *acts):
        self.acts, self.scores, self.workers = dict(acts), 0, []

    def scored(self, job, record, population):
        self.scores += 1
        self.workers.append(processes(WORKERS))
        if self.scores in self.acts:
            self.acts[self.scores]()

    def perturbed(self, perturbation, population): ...
    def dropped(self, record, population): ...
    def caught_up(self, population): ...
    def close(self): ...


def assert_as_one_worker(run: Path, reference: Path) -> None:
    """Scores are of 60 images: equal unless rounding turns one of them; then decisions, and all, could differ."""
    assert facts(run) == facts(reference)
    assert sorted(lineage(run)) == sorted(lineage(reference)) and lineage(reference)
    found, expected = weights(run), weights(reference)
    for state in expected:
        student = found[state]["networks"]["student"]
        for name, value in expected[state]["networks"]["student"].items():
            torch.testing.assert_close(student[name], value, rtol=0.02, atol=2e-3)


def kill_one(name: str, killed: list) -> None:
    found = sorted(processes(name))
    assert found, f"no process {name}"
    os.kill(found[-1], signal.SIGKILL)
    killed.append(time.monotonic())


@pytest.mark.slow
def test_a_search_on_a_group_is_that_of_one_worker_though_a_worker_dies(ray, reference, tmp_path):
    killed: list[float] = []
    watcher = Watcher((6, partial(kill_one, WORKERS, killed)))
    _, population = search_population(tmp_path, tiny_settings("slots.workers=2"), BOTH, observers=[watcher])
    assert killed and population.finished and population.live == {0, 1, 2, 3}
    assert len({frozenset(pids) for pids in watcher.workers[:6]}) == 1 and len(watcher.workers[0]) == 2
    assert len({frozenset(pids) for pids in watcher.workers[-5:]}) == 1, "one new pair"
    assert_as_one_worker(tmp_path, reference)


class Full(NoOpWorker):
    """The storage is full for the first worker, which writes; the other notices nothing."""

    def train(self, job):
        if job.generation == 1 and self.sharding.rank == 0:
            raise StorageError("states/002-0001: cannot write the checkpoint: No space left on device")
        return super().train(job)


@pytest.mark.slow
def test_a_full_disk_stops_the_search_with_its_own_message(ray, tmp_path):
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=9))
    settings = tiny_settings("slots.workers=2")
    with pytest.raises(StorageError, match="No space left on device"):
        run_on_ray(ledger, partial(Full, tmp_path / "states"), search=settings.search, slots=settings.slots)
    ledger.close()
    assert not [record for record in read_log(tmp_path) if record["kind"] == "drop"]


def refuse(sharding):
    raise ConfigError("data.path: no such folder")


@pytest.mark.slow
def test_workers_that_cannot_be_built_say_why(ray, tmp_path):
    pool = SlotPool(tiny_settings("slots.workers=2").slots, refuse, storage=tmp_path)
    pool.grow(1)
    with pytest.raises(ConfigError, match="no such folder"):
        pool.prepare()
    pool.stop()


def test_groups_that_do_not_fit_are_refused_with_the_numbers(ray):
    cpus = int(ray_api.cluster_resources()["CPU"])
    wanted = f"slots.workers={cpus + 1}"
    with pytest.raises(ConfigError, match=rf"{cpus + 1} workers of 1 CPUs and 0 GPUs each; expected at most 0"):
        slot_count(tiny_settings(wanted).slots, 4)
    assert slot_count(tiny_settings(f"slots.workers=[1, {cpus + 1}]").slots, 4) == 1
