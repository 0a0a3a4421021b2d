"""How much faster two workers train an interval than one, beside what the machine could give at best.

`python tests/benchmarks/test_scaling.py [ROUNDS]`. resnet56 teaches resnet20, 128 photographs a batch, one thread a
worker, gloo; whole intervals by the package's `TrainingWorker`: building the networks, views, steps, validation, the
state on disk. All arms run in the same two processes, one after another, in reversed order every other round.

Efficiency is (time of one worker) / (2 × time of two). Its ceiling is measured too: two workers that know nothing of
each other train an interval each, at once; what they lose against one is the memory's and the neighbours' doing.
"""

import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from step_arms import SHARED, STUDENT, TEACHER, head
from test_augment_speed import quartiles

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.population import Job, Population
from rolekd_ray.roles import Role
from rolekd_ray.search.population_search import rule_of
from rolekd_ray.slots.interface import Task
from rolekd_ray.training.checkpoint import save_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.networks import describe_networks
from rolekd_ray.training.sharding import Sharding

BATCH, STEPS, VALIDATION, ROUNDS, WANTED = 128, 4, 256, 6, 0.85
ALONE, AGAIN, SYNC, LOCAL, APART = "one worker", "one worker again", "two, sync", "two, local", "two, each its own"
ARMS = (ALONE, SYNC, LOCAL, APART, AGAIN)

pytestmark = pytest.mark.benchmark


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
        started = time.perf_counter()
        metrics = workers[ALONE if arm in (AGAIN, APART) else arm](job)
        wanted.send((time.perf_counter() - started, metrics["train_seconds"], metrics["student/loss"]))
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


def measure(data: Path, rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """Return (seconds of an interval, of its training, last loss) of every arm and round."""
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
        found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in ARMS}
        for number in range(rounds + 1):
            same = next(jobs)  # arms of one round train one policy, as members of different numbers
            for arm in ARMS[:: 1 if number % 2 else -1]:
                job = same if arm in (ALONE, SYNC, LOCAL) else next(jobs)
                job = Job(job.member, 0, None, 0, 1, job.total_epochs, same.policies)
                asked = pipes if arm in (SYNC, LOCAL, APART) else pipes[:1]
                for pipe in asked:
                    pipe.send((arm, job))
                answers = [pipe.recv() for pipe in asked]
                if number:
                    found[arm].append(max(answers))
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(30)
    return found


def report(data: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Print the table; return the medians of paired efficiencies."""
    found = measure(data, rounds)
    head(f"interval: {TEACHER} teaches {STUDENT}, {STEPS} batches of {BATCH} photographs", rounds, "wall time")
    print(f"{'arm':20}{'interval s':>12}{'training s':>12}{'efficiency':>12}{'quartiles':>16}{'of ceiling':>12}")
    efficiency = {}
    for arm, rows in found.items():
        # Two that train an interval each do twice the work of one; two that share one do as much
        share = {ALONE: 1.0, AGAIN: 1.0, APART: 1.0}.get(arm, 2.0)
        ratios = [one[0] / (share * row[0]) for one, row in zip(found[ALONE], rows)]
        low, efficiency[arm], high = quartiles(ratios)
        of_ceiling = statistics.median(r * both[0] / one[0] for r, both, one in zip(ratios, found[APART], found[ALONE]))
        print(
            f"{arm:20}{statistics.median(r[0] for r in rows):12.2f}{statistics.median(r[1] for r in rows):12.2f}"
            f"{efficiency[arm]:12.3f}{low:10.3f} -{high:.3f}{of_ceiling:12.3f}"
        )
    for one, two in zip(found[ALONE], found[SYNC]):
        assert two[2] == pytest.approx(one[2], rel=0.1), "not the same training"  # bfloat16, a learning rate of 0.1
    return efficiency


def test_two_workers_are_nearly_twice_as_fast_as_one(shared_data, capsys):
    with capsys.disabled():
        efficiency = report(shared_data / "cifar10")
    assert efficiency[SYNC] >= WANTED and efficiency[LOCAL] >= WANTED


if __name__ == "__main__":
    report(SHARED / "cifar10", *map(int, sys.argv[1:]))
