"""Slots of several workers: Ray Train groups that live through the search, and what happens when parts of them die."""

import os
import signal
import time
from functools import partial

import pytest
import ray as ray_api
from ray_helpers import BOTH, NoOpWorker, assert_as_one_worker, processes, rule, tiny_settings

from rolekd_ray.errors import ConfigError, StorageError
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.ledger import Ledger, Observer
from rolekd_ray.search.log import read_log
from rolekd_ray.search.population_search import search_population
from rolekd_ray.search.slot_pool import SlotPool
from rolekd_ray.search.tune_search import run_on_ray

WORKERS = "ray::RayTrainWorker"


class Watcher(Observer):
    """Notes which processes train, and does something after the n-th score."""

    def __init__(self, *acts):
        self.acts, self.scores, self.workers = dict(acts), 0, []

    def scored(self, job, record, population):
        self.scores += 1
        self.workers.append(processes(WORKERS))
        if self.scores in self.acts:
            self.acts[self.scores]()


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


class Asker:
    """Owns a room, as a slot of several workers does."""

    def __init__(self, settings):
        from rolekd_ray.slots.group_room import Room

        self.room = Room(settings)

    def wait(self):
        return self.room.wait(lambda: False)

    def hold(self, workers):
        self.held = ray_api.util.placement_group([{"CPU": 1}] * workers)
        self.room.wish(workers)
        return self.held.wait(30)

    def grown(self):
        return self.room.grown()

    def drop(self):
        ray_api.util.remove_placement_group(self.held)


def reserved() -> list[tuple[str, int]]:
    found = ray_api.util.placement_group_table().values()
    return sorted((group["state"], len(group["bundles"])) for group in found if group["state"] != "REMOVED")


@pytest.mark.slow
def test_a_group_gets_what_fits_wishes_for_the_rest_and_leaves_nothing_behind(ray):
    cpus = int(ray_api.cluster_resources()["CPU"])
    settings = tiny_settings(f"slots.workers=[1,{cpus + 1}]").slots
    asker = ray_api.remote(Asker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(settings)
    assert ray_api.get(asker.wait.remote(), timeout=60) == cpus and reserved() == []
    assert ray_api.get(asker.hold.remote(cpus), timeout=60)
    assert reserved() == [("CREATED", cpus), ("PENDING", 1)] and not ray_api.get(asker.grown.remote())
    ray_api.kill(asker, no_restart=False)
    assert ray_api.get(asker.wait.remote(), timeout=60) == cpus and reserved() == [], "of its former life"
    assert ray_api.get(asker.hold.remote(cpus), timeout=60)
    ray_api.get(asker.drop.remote())
    deadline = time.monotonic() + 30
    while not ray_api.get(asker.grown.remote()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ray_api.kill(asker)
    other = ray_api.remote(Asker).options(num_cpus=0).remote(settings)
    assert ray_api.get(other.wait.remote(), timeout=60) == cpus and reserved() == [], "of one that is dead"
    ray_api.kill(other)
