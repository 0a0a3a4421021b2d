"""Searches that train nothing: a small rule, scores by hash, a worker that leaves real files. No torch, no Ray."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from rolekd_ray.policy.jobs import Job, Perturbation
from rolekd_ray.policy.population import FORMAT, Population, Rule
from rolekd_ray.policy.space import OpSpec, ScalarSpec, SearchSpace
from rolekd_ray.roles import Role

BOTH = (Role.TEACHER, Role.STUDENT)
SPACE = SearchSpace(
    name="three_ops",
    ops=(OpSpec("rotate", tuple(map(float, range(10))), signed=True), OpSpec("invert"), OpSpec("cutout", (0.0,) * 10)),
    scalars=(
        ScalarSpec("temperature", Role.STUDENT, 4.0, 1.0, 10.0, log=True),
        ScalarSpec("weight_decay", Role.TEACHER, 1e-4, 1e-5, 1e-3, log=True),
    ),
)


def made_rule(**overrides: Any) -> Rule:
    """8 members, 10 epochs in intervals of 3, both roles, random first policies."""
    settings = {"seed": 0, "population_size": 8, "epochs": 10, "interval_epochs": 3, "roles": BOTH, "space": SPACE}
    return Rule(**{**settings, "initial": "random", **overrides})


def hashed(*purpose: object) -> float:
    """A number in [0, 1) that depends on the arguments alone."""
    return int(hashlib.sha256(repr(purpose).encode()).hexdigest()[:12], 16) / 2**48


def score_of(job: Job) -> float:
    """The score that `HashWorker` gives; different for every member and generation."""
    return hashed(job.member, job.generation)


def init_record(rule: Rule) -> dict[str, Any]:
    """The first record of a log."""
    return {"kind": "init", "format": FORMAT, "rule": rule.to_dict()}


@dataclass
class Life:
    """A population and what made it so; `asked[k]` holds the job of every member after k records."""

    population: Population
    records: list[dict[str, Any]]
    found: list[Perturbation] = field(default_factory=list)
    seen: list[tuple[dict, dict, set, list]] = field(default_factory=list)

    def tell(self, record: dict[str, Any]) -> list[Perturbation]:
        """Tell a record and keep what the population then looks like."""
        self.records.append(record)
        perturbations = self.population.tell(record)
        self.found += perturbations
        self.note()
        return perturbations

    def note(self) -> None:
        """Keep what the population looks like."""
        p = self.population
        self.seen.append((dict(p.jobs), dict(p.newest), set(p.live), list(p.ends)))

    def score(self, job: Job, score: float) -> list[Perturbation]:
        """Tell a job's score."""
        return self.tell({"kind": "score", "member": job.member, "generation": job.generation, "score": score})

    def fail(self, job: Job, reason: str = "drawn") -> list[Perturbation]:
        """Tell that a job was given up."""
        return self.tell({"kind": "fail", "member": job.member, "generation": job.generation, "reason": reason})


def new_life(rule: Rule) -> Life:
    """A population of which nothing is known yet."""
    life = Life(Population(rule), [init_record(rule)])
    life.note()
    return life


def open_jobs(population: Population) -> list[Job]:
    """The intervals that could be trained now."""
    return [job for member in sorted(population.live) if (job := population.ask(member)) is not None]


def live_through(
    rule: Rule,
    seed: int,
    *,
    drop_chance: float = 0.0,
    fail_chance: float = 0.0,
    extends: Sequence[int] = (),
    score: Callable[[Job], float] = score_of,
) -> Life:
    """Let a population live until nobody has anything to train; members report in random order.

    At every step a member is dropped with `drop_chance`, an interval fails with `fail_chance`; goals of `extends` are
    set now and then, or at the end.
    """
    rng, life, goals = Random(seed), new_life(rule), list(extends)
    while (jobs := open_jobs(life.population)) or goals:
        if goals and (not jobs or rng.random() < 0.05):
            life.tell({"kind": "extend", "epochs": goals.pop(0)})
        elif life.population.live and rng.random() < drop_chance:
            life.tell({"kind": "drop", "member": rng.choice(sorted(life.population.live)), "reason": "drawn"})
        elif jobs:
            job = rng.choice(jobs)
            if rng.random() < fail_chance:
                life.fail(job)
            else:
                life.score(job, score(job))
    return life


class HashWorker:
    """Trains nothing, but reads the state it starts from, leaves a state, and counts.

    Like the real worker it returns the stored metrics of a job that was done before. `act` is called before each job,
    `torn` between state and score.
    """

    def __init__(self, states: Path, act: Callable[[Job], None] | None = None, torn: Callable | None = None):
        self.states, self.act, self.torn = states, act, torn
        self.trained: list[str] = []

    def train(self, job: Job) -> dict[str, Any]:
        """See `Worker.train`."""
        if self.act is not None:
            self.act(job)
        file = self.states / job.state / "state.json"
        if not file.exists():
            if job.source is not None:
                assert (self.states / job.source / "state.json").is_file(), f"{job.source} was deleted too early"
            self.trained.append(job.state)
            aside = self.states / f".{job.state}"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            (aside / file.name).write_text(json.dumps({"score": score_of(job), "epoch": job.end_epoch}))
            aside.rename(file.parent)  # whole or not at all, whoever is killed; not brought to disk, to be fast
        if self.torn is not None:
            self.torn(job)
        return json.loads(file.read_text())


def play(ledger: Any, count: int | None = None) -> None:
    """Score the next `count` intervals of a ledger, the least advanced member first; None: all."""
    population = ledger.population
    while (jobs := open_jobs(population)) and count != 0:
        job = min(jobs, key=lambda job: (job.generation, job.member))
        ledger.score(job, {"score": score_of(job), "loss": 1 - score_of(job)})
        count = None if count is None else count - 1
