"""What a perturbation costs on worker groups beside training, against a group launched anew for every interval.

The cost of an interval is the wall time between the moment at which its group could have begun it (the group's last
interval is validated, and so are all of the generation before) and its first batch: saving that state, the score's way
to the log, the decision, its way back, building the networks, loading the state.
"""

import json
import os
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import RunConfig, ScalingConfig
from ray_helpers import BOTH, processes, tiny_settings

from rolekd_ray.config import Settings
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.population import Population
from rolekd_ray.search.ledger import STATES, Ledger, Observer
from rolekd_ray.search.log import read_log
from rolekd_ray.search.population_search import rule_of
from rolekd_ray.search.tune_search import run_on_ray
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training.sharding import Sharding

MEMBERS, GENERATIONS, RELAUNCHES, MOST_SECONDS = 6, 10, 3, 0.1
WORKERS = "ray::RayTrainWorker"


class Timed(TrainingWorker):
    """The real worker, which also says when training began and when validation ended."""

    def train(self, job):
        return super().train(job) | {"begun": self.begun, "ended": self.ended, "group": os.getpid()}

    def _learner(self, job):
        learner = super()._learner(job)
        self.begun = time.time()
        return learner

    def _validate(self, learner):
        found = super()._validate(learner)
        self.ended = time.time()
        return found


class Pids(Observer):
    """Which workers there are whenever a score comes in."""

    def __init__(self):
        self.seen: list[frozenset[int]] = []

    def scored(self, job, record, population):
        self.seen.append(frozenset(processes(WORKERS)))


def settings_of(*overrides: str) -> Settings:
    size = f"search.population_size={MEMBERS}", f"search.epochs={GENERATIONS}"
    return tiny_settings("slots.workers=2", *size, *overrides)


def costs_on_groups(folder: Path, settings: Settings) -> dict[str, list[float]]:
    """Search; return the seconds of every exploit and of every other turn-over, once all trials are up."""
    pids = Pids()
    ledger = Ledger(folder, rule_of(settings, BOTH), [pids])
    task = Task(settings, folder / STATES, BOTH)
    run_on_ray(ledger, partial(Timed, task), search=settings.search, slots=settings.slots)
    ledger.close()
    assert ledger.population.finished and len(pids.seen) == MEMBERS * GENERATIONS
    assert len(set(pids.seen)) == 1 and len(pids.seen[0]) == 2 * settings.slots.count, "other workers than at first"
    rows = [r | r["metrics"] for r in read_log(folder) if r["kind"] == "score"]
    done = {g: max(row["ended"] for row in rows if row["generation"] == g) for g in range(GENERATIONS)}
    costs: dict[str, list[float]] = {"exploit": [], "turn-over": []}
    for group in {row["group"] for row in rows}:
        own = sorted((row for row in rows if row["group"] == group), key=lambda row: row["begun"])
        for before, row in pairwise(own):
            member, generation = row["member"], row["generation"]
            if generation > 1:  # before that, members' trials may still be starting
                donor = ledger.population.jobs[member, generation].donor
                kind = "turn-over" if donor == member else "exploit"
                costs[kind].append(row["begun"] - max(before["ended"], done[generation - 1]))
    return costs


def one_interval(config: dict[str, Any]) -> None:
    """What a worker group does that is launched for one interval."""
    sharding = Sharding(dist.get_rank(), dist.get_world_size(), talk=dist.group.WORLD)
    metrics = config["make_worker"](sharding=sharding).train(config["job"])
    if sharding.rank == 0:
        config["answer"].write_text(json.dumps(metrics))


def costs_of_relaunching(folder: Path, settings: Settings) -> list[float]:
    """Train one member's intervals with one `fit` each; return the seconds from one to the next."""
    task, population, rows = Task(settings, folder / STATES, BOTH), Population(rule_of(settings, BOTH)), []
    first = population.jobs[0, 0]
    for generation in range(RELAUNCHES + 1):
        donor = 0 if generation else None
        job = Job(0, generation, donor, generation, generation + 1, first.total_epochs, first.policies)
        answer = folder / f"{job.state}.json"
        TorchTrainer(
            one_interval,
            train_loop_config={"make_worker": partial(Timed, task), "job": job, "answer": answer},
            scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name=job.state, storage_path=str(folder / "train")),
        ).fit()
        rows.append(json.loads(answer.read_text()))
    return [after["begun"] - before["ended"] for before, after in pairwise(rows)]


def show(title: str, costs: dict[str, list[float]]) -> None:
    for kind, seconds in costs.items():
        p90 = quantiles(seconds, n=10, method="inclusive")[-1]
        print(
            f"{title:28}{kind:12}median {median(seconds):8.3f} s   p90 {p90:8.3f} s   most {max(seconds):8.3f} s   "
            f"n {len(seconds)}"
        )


@pytest.mark.benchmark
def test_a_perturbation_costs_a_message_and_no_launch(ray, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # as groups of slots have it
    halves = "slots.resources_per_worker.cpus=0.5"
    one = costs_on_groups(tmp_path / "one", settings_of("slots.count=1"))
    two = costs_on_groups(tmp_path / "two", settings_of("slots.count=2", halves))
    anew = costs_of_relaunching(tmp_path / "anew", settings_of())
    with capsys.disabled():
        print(f"\n{MEMBERS} members, {GENERATIONS} generations, gloo; load {os.getloadavg()[0]:.1f}")
        show("one group of two", one)
        show("two groups of two, 2 cores", two)
        show("a group per interval", {"launch": anew})
    for seconds in (*one.values(), *two.values()):
        assert median(seconds) <= MOST_SECONDS
    assert median(anew) > 10 * max(median(seconds) for seconds in (*one.values(), *two.values()))
