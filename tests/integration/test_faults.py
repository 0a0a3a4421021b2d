"""What dies, hangs or joins while a search runs, with real processes; trainings are empty, so that faults fill them."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
import ray as ray_api
from ray_helpers import NoOpWorker, facts, lineage, processes, rule, tiny_settings

from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger
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
    """Stops itself, as a process does that waits for a dead disk, once."""

    def train(self, job):
        mark = self.states.parent / "hung"
        if job.generation == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().train(job)


class SlowToBuild(NoOpWorker):
    """Takes long enough to be killed meanwhile."""

    def __init__(self, states):
        super().__init__(states)
        time.sleep(2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    ledger = Ledger(folder, rule(population_size=4, epochs=3 * GENERATIONS))
    run_local(ledger, NoOpWorker(folder / "states"))
    ledger.close()
    return folder


class Killer:
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

    def perturbed(self, perturbation, population): ...
    def dropped(self, record, population): ...
    def caught_up(self, population): ...
    def close(self): ...


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
def test_a_hanging_slot_is_killed_and_its_interval_repeated(ray, tmp_path):
    (tmp_path / "states").mkdir()
    ledger = Ledger(tmp_path, rule(population_size=4, epochs=9))
    settings = tiny_settings("slots.count=1")
    pool = SlotPool(settings.slots, partial(Hanging, tmp_path / "states"), storage=tmp_path / "tune")
    pool.grow(1)
    pool.prepare()
    dispatcher = ray_api.remote(Dispatcher).remote(tmp_path, list(pool.slots), 0, hung_seconds=2.0)
    ray_api.get(dispatcher.refresh.remote())
    for generation in range(2):
        for member in range(4):
            outcome = ray_api.get(dispatcher.interval.remote(member, generation - 1), timeout=60)
            ledger.score(ledger.population.jobs[member, generation], outcome["metrics"])
        ray_api.get(dispatcher.refresh.remote())
    assert (tmp_path / "hung").exists() and len(facts(tmp_path)) == 8
    pool.stop()
    ray_api.kill(dispatcher)
    ledger.close()


@pytest.mark.slow
def test_a_slot_that_dies_while_it_builds_its_worker_builds_it_again(ray, tmp_path):
    killed: list[int] = []

    def kill():
        while not (found := processes("ray::Slot.prepare")):
            time.sleep(0.05)
        killed.extend(found)
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    pool = SlotPool(tiny_settings("slots.count=1").slots, partial(SlowToBuild, tmp_path), storage=tmp_path / "tune")
    pool.grow(1)
    killer = Thread(target=kill, daemon=True)
    killer.start()
    pool.prepare()
    killer.join(5)
    (slot,) = pool.slots.values()
    assert len(killed) == 1 and ray_api.get(slot.prepare.remote()) not in killed
    pool.stop()
