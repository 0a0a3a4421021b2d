"""What dies, hangs or joins while a search runs, with real processes; trainings are empty, so that faults fill them."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import ray as ray_api
from ray_helpers import NoOpWorker, facts, lineage, processes, rule, tiny_settings

from rolekd_ray.progress import advance
from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger, Observer
from rolekd_ray.search.local import run_local
from rolekd_ray.search.slot_pool import SlotPool
from rolekd_ray.search.tune_search import run_on_ray

GENERATIONS = 8


class Steady(NoOpWorker):
    """An interval takes a quarter of a second, and all workers of a group take part in it."""

    def train(self, job):
        time.sleep(0.25)
        if self.sharding is not None:
            self.sharding.decided_by_first(lambda: None)
        return super().train(job)


class Hanging(NoOpWorker):
    """In the first interval of member 0 its process, of a group the last one, stops once; member 1's takes long."""

    def train(self, job):
        last = self.sharding is None or self.sharding.rank == self.sharding.workers - 1
        mark = self.states.parent / "hung"
        if (job.member, job.generation) == (0, 0) and last and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        if (job.member, job.generation) == (1, 0) and last:
            with open(self.states.parent / "long", "a") as begun:
                begun.write("begun\n")
            for _ in range(16):
                time.sleep(0.5)
                advance()
        if self.sharding is not None:
            self.sharding.decided_by_first(lambda: None)
        return super().train(job)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    ledger = Ledger(folder, rule(population_size=4, epochs=3 * GENERATIONS))
    run_local(ledger, NoOpWorker(folder / "states"))
    ledger.close()
    return folder


class Killer(Observer):
    """Kills processes after the n-th score and notes how long it takes until the next one."""

    def __init__(self, after: int, name: str, count: int):
        self.after, self.name, self.count = after, name, count
        self.scores, self.killed, self.waited = 0, 0.0, 0.0

    def scored(self, job, record, population):
        self.scores += 1
        if self.killed:
            self.waited = max(self.waited, time.monotonic() - self.last)
        self.last = time.monotonic()
        if self.scores == self.after:
            victims = sorted(processes(self.name))[-self.count :]
            assert len(victims) == self.count, (self.name, victims)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            self.killed = time.monotonic()


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim, count, most_seconds",
    [("ray::RayTrainWorker", 1, 15), ("ray::RayTrainWorker", 2, 15), ("ray::GroupSlot", 1, 20)],
    ids=["one worker", "all workers", "the slot's owner"],
)
def test_a_group_whose_processes_are_killed(ray, reference, tmp_path, victim, count, most_seconds):
    killer = Killer(9, victim, count)
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=3 * GENERATIONS), [killer])
    settings = tiny_settings("slots.workers=2")
    run_on_ray(ledger, partial(Steady, tmp_path / "states"), search=settings.search, slots=settings.slots)
    ledger.close()
    print(f"\n{count} x {victim} killed: the next score after {killer.waited:.1f} s")
    assert ledger.population.finished and ledger.population.live == {0, 1, 2, 3}
    assert facts(tmp_path) == facts(reference) and sorted(lineage(tmp_path)) == sorted(lineage(reference))
    assert killer.waited <= most_seconds


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2], ids=["a process", "a group of two"])
def test_a_slot_that_hangs_in_its_first_interval_is_replaced_and_one_that_is_slow_is_not(ray, tmp_path, workers):
    (tmp_path / "states").mkdir()
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=9))
    settings = tiny_settings("slots.count=1", f"slots.workers={workers}")
    pool = SlotPool(settings.slots, partial(Hanging, tmp_path / "states"), storage=tmp_path / "tune")
    pool.grow(1)
    pool.prepare()
    dispatcher = ray_api.remote(Dispatcher).remote(tmp_path, list(pool.slots), 0, hung_seconds=4.0)
    began = time.monotonic()
    ray_api.get(dispatcher.refresh.remote())
    outcome = ray_api.get(dispatcher.interval.remote(0, -1), timeout=120)
    print(f"\n{workers} workers: the interval of a stopped process ended after {time.monotonic() - began:.1f} s")
    ledger.score(ledger.population.jobs[0, 0], outcome["metrics"])
    for member in range(1, 4):
        outcome = ray_api.get(dispatcher.interval.remote(member, -1), timeout=120)
        ledger.score(ledger.population.jobs[member, 0], outcome["metrics"])
    assert (tmp_path / "hung").exists() and len(facts(tmp_path)) == 4
    assert (tmp_path / "long").read_text() == "begun\n", "8 s of work, twice the limit, are not repeated"
    pool.stop()
    ray_api.kill(dispatcher)
    ledger.close()


@pytest.mark.slow
def test_what_a_group_had_reserved_comes_back_though_its_owner_dies_before_it_is_up(ray, tmp_path):
    pool = SlotPool(tiny_settings("slots.workers=2").slots, partial(Steady, tmp_path / "states"), storage=tmp_path)
    pool.grow(1)
    (slot,) = pool.slots.values()
    slot.prepare.remote()
    while not processes("ray::RayTrainWorker"):
        time.sleep(0.05)
    (owner,) = processes("ray::GroupSlot")
    os.kill(owner, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert ray_api.get(slot.prepare.remote(), timeout=max(1, deadline - time.monotonic())) != owner
            break
        except ray_api.exceptions.RayActorError:
            time.sleep(0.2)
    pool.stop()
