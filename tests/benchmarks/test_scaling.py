"""How much faster two workers train an interval than one, beside what the machine could give at best.

`python tests/benchmarks/test_scaling.py [ROUNDS]`. resnet56 teaches resnet20, 128 photographs a batch, one thread a
worker, gloo; whole intervals by the package's `TrainingWorker`: building the networks, views, steps, validation, the
state on disk. All arms run in the same two processes, one after another, in reversed order every other round.

Efficiency is (time of one worker) / (2 × time of two). Its ceiling is measured too: two workers that know nothing of
each other train an interval each, at once; what they lose against one is the memory's and the neighbours' doing.
Rounds in which other processes of the machine took more than `MOST_OF_OTHERS` of a core are left out, if enough remain.
"""

import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from step_arms import SHARED, STUDENT, TEACHER, head
from test_augment_speed import quartiles

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.population import Population
from rolekd_ray.roles import Role
from rolekd_ray.search.population_search import rule_of
from rolekd_ray.slots.interface import Task
from rolekd_ray.training.checkpoint import save_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.networks import describe_networks
from rolekd_ray.training.sharding import Sharding

BATCH, STEPS, VALIDATION, ROUNDS, WANTED = 128, 2, 256, 12, 0.85
MOST_OF_OTHERS, FEWEST_ROUNDS = 0.1, 4
ALONE, AGAIN, SYNC, LOCAL, APART = "one worker", "one worker again", "two, sync", "two, local", "two, each its own"
ARMS = (ALONE, SYNC, LOCAL, APART, AGAIN)

pytestmark = pytest.mark.benchmark


class Answer(NamedTuple):
    """What a worker says of an interval: wall seconds of all and of its batches, last loss, CPU seconds."""

    seconds: float
    training: float
    loss: float
    spent: float


@dataclass
class Round:
    """The slower worker's answer of every arm, and how much of a core other processes took meanwhile."""

    arms: dict[str, Answer]
    others: float


def busy_seconds() -> float:
    """CPU seconds that all processes of this machine, and its host beside it, took since it started."""
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def settings_of(data: Path, arm: str) -> Settings:
    names = {
        "data.path": data,
        "data.source": "parquet",
        "data.train": BATCH * STEPS,
        "data.validation": VALIDATION,
        "final.train": BATCH * STEPS,
        "teacher.model": TEACHER,
        "student.model": STUDENT,
        "training.batch_size": BATCH,
        "training.batchnorm": "local" if arm == LOCAL else "sync",
        "search.perturbation_interval_epochs": 1,
        "search.initial_policies": "random",
    }
    return load_settings("cifar10_pba", [f"{key}={value}" for key, value in names.items()])


def worker_of(arm: str, folder: Path, data: Path, sharding: Sharding) -> Callable[[Job], dict[str, Any]]:
    """Return what trains an interval; its images and its teacher are loaded."""
    from rolekd_ray.slots.worker import TrainingWorker

    task = Task(settings_of(data, arm), folder / "states", (Role.STUDENT,), teacher=folder / "teacher")
    worker = TrainingWorker(task, sharding)
    assert worker.trainer.frozen_teacher is not None and len(worker.data.train) == BATCH * STEPS
    return worker.train


def serve(rank: int, port: int, folder: Path, data: Path, wanted: Connection) -> None:
    """Train what is asked for, an (arm, job) at a time; answer with seconds."""
    # By name, for a host name need not be one that gloo can resolve
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    workers = {}
    for arm in (ALONE, SYNC, LOCAL):
        sharding = Sharding() if arm == ALONE else Sharding(rank, 2)
        workers[arm] = worker_of(arm, folder / (f"{arm} {rank}" if arm == ALONE else arm), data, sharding)
    wanted.send("ready")
    while (asked := wanted.recv()) is not None:
        arm, job = asked
        started, spent = time.perf_counter(), time.process_time()
        metrics = workers[ALONE if arm in (AGAIN, APART) else arm](job)
        wanted.send(
            Answer(
                time.perf_counter() - started,
                metrics["train_seconds"],
                metrics["student/loss"],
                time.process_time() - spent,
            )
        )
    dist.destroy_process_group()


def jobs_of(settings: Settings, count: int) -> list[Job]:
    """First intervals of members with random policies: every job is a new one, so none is found on disk."""
    population = Population(rule_of(settings.model_copy(
        update={"search": settings.search.model_copy(update={"population_size": count})}), (Role.STUDENT,)
    ))  # fmt: skip
    return [population.jobs[member, 0] for member in range(count)]


def save_teacher(folder: Path, data: Path) -> None:
    settings = settings_of(data, ALONE)
    opened = open_training_data(settings.data, train=settings.data.train)
    network = build_network(TEACHER, num_classes=10, channels=3, seed=0)
    with torch.no_grad():  # BatchNorm statistics of data, or its logits would be huge
        network.train()(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    description = describe_networks({Role.TEACHER: TEACHER}, opened.image_set, opened.statistics, settings.data)
    save_checkpoint(folder, {"networks": {"teacher": network.state_dict()}}, description)


def measure(data: Path, rounds: int) -> list[Round]:
    """Train every arm's interval once a round, after one round to warm up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for arm in (f"{ALONE} 0", f"{ALONE} 1", SYNC, LOCAL):
            save_teacher(folder / arm / "teacher", data)
        pipes, processes = [], []
        for rank in range(2):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(rank, port, folder, data, theirs), daemon=True))
            pipes.append(ours)
            processes[-1].start()
        assert [pipe.recv() for pipe in pipes] == ["ready", "ready"]
        jobs = iter(jobs_of(settings_of(data, ALONE), len(ARMS) * (rounds + 1)))
        found = [one_round(number, pipes, jobs) for number in range(rounds + 1)]
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(30)
    return found[1:]


def one_round(number: int, pipes: list[Any], jobs: Iterator[Job]) -> Round:
    arms, same = {}, next(jobs)  # arms of one round train one policy, as members of different numbers
    started, busy, own = time.perf_counter(), busy_seconds(), 0.0
    for arm in ARMS[:: 1 if number % 2 else -1]:
        job = same if arm in (ALONE, SYNC, LOCAL) else next(jobs)
        job = Job(job.member, 0, None, 0, 1, job.total_epochs, same.policies)
        asked = pipes if arm in (SYNC, LOCAL, APART) else pipes[:1]
        for pipe in asked:
            pipe.send((arm, job))
        answers = [pipe.recv() for pipe in asked]
        own += sum(answer.spent for answer in answers)
        arms[arm] = max(answers)
    return Round(arms, (busy_seconds() - busy - own) / (time.perf_counter() - started))


def report(data: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Print the tables; return the medians of paired efficiencies, of quiet rounds if these are enough."""
    found = measure(data, rounds)
    for each in found:
        one, two = each.arms[ALONE], each.arms[SYNC]
        assert two.loss == pytest.approx(one.loss, rel=0.1), "not the same training"  # bfloat16, learning rate 0.1
    head(f"interval: {TEACHER} teaches {STUDENT}, {STEPS} batches of {BATCH} photographs", rounds, "wall time")
    print("others took, in cores, per round:", " ".join(f"{each.others:.2f}" for each in found))
    quiet = [each for each in found if each.others <= MOST_OF_OTHERS]
    efficiency = table(f"all {rounds} rounds", [each.arms for each in found])
    if len(quiet) >= FEWEST_ROUNDS:
        efficiency = table(f"the {len(quiet)} quiet rounds", [each.arms for each in quiet])
    return efficiency


def table(title: str, found: list[dict[str, Answer]]) -> dict[str, float]:
    print(f"{title:24}{'interval s':>12}{'training s':>12}{'efficiency':>12}{'quartiles':>16}{'of ceiling':>12}")
    medians = {}
    for arm in ARMS:
        # Two that train an interval each do twice the work of one; two that share one do as much
        share = 2 if arm in (SYNC, LOCAL) else 1
        ratios = [arms[ALONE].seconds / (share * arms[arm].seconds) for arms in found]
        low, medians[arm], high = quartiles(ratios)
        ceilings = [arms[ALONE].seconds / arms[APART].seconds for arms in found]
        print(
            f"{arm:24}{statistics.median(arms[arm].seconds for arms in found):12.2f}"
            f"{statistics.median(arms[arm].training for arms in found):12.2f}"
            f"{medians[arm]:12.3f}{low:10.3f} -{high:.3f}"
            f"{statistics.median(ratio / ceiling for ratio, ceiling in zip(ratios, ceilings)):12.3f}"
        )
    return medians


def test_two_workers_are_nearly_twice_as_fast_as_one(shared_data, capsys):
    with capsys.disabled():
        efficiency = report(shared_data / "cifar10")
    assert efficiency[SYNC] >= WANTED and efficiency[LOCAL] >= WANTED


if __name__ == "__main__":
    report(SHARED / "cifar10", *map(int, sys.argv[1:]))
