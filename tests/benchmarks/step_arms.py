"""What the benchmarks of a training step share: real distillation steps, timed arms in reversed orders, a table."""

import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from test_augment_speed import load_images, processor, quartiles

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.policy import Policy, random_policy
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.learner import Learner, new_learner
from rolekd_ray.training.precision import has_fast_bfloat16

CPU = torch.device("cpu")
SHARED = Path(__file__).parents[3] / "shared" / "data"
TEACHER, STUDENT, BATCH = "resnet56", "resnet20", 64


def step_settings(precision: str = "auto", view_mode: str = "independent") -> Settings:
    """PBA's CIFAR-10 search: its ops, crop by 4 pixels, flip, Cutout of 16."""
    names = {
        "teacher.model": TEACHER,
        "student.model": STUDENT,
        "training.batch_size": BATCH,
        "training.precision": precision,
        "distill.view_mode": view_mode,
    }
    return load_settings("cifar10_pba", [f"{key}={value}" for key, value in names.items()])


def step_data(batches: int) -> tuple[TrainingData, str]:
    """Return as many photographs as make this many batches, and where they come from."""
    images, origin = load_images(SHARED)
    count = batches * BATCH
    labels = torch.arange(len(images)) % 10  # any will do for speed
    image_set = ImageSet("benchmark", images, labels, tuple("0123456789"))
    return TrainingData(image_set, torch.arange(count), torch.arange(count, len(images))), origin


def network(model: str, seed: int) -> torch.nn.Module:
    """Return a colour network whose BatchNorm statistics are those of data."""
    made = build_network(model, num_classes=10, channels=3, seed=seed)
    with torch.no_grad():
        made.train()(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return made


def training(settings: Settings, data: TrainingData) -> tuple[Trainer, Learner]:
    """Return the package's own epoch loop with a frozen teacher, and a fresh student."""
    trainer = new_trainer(settings, data, settings.search_space(), CPU, network(TEACHER, 0))
    learner = new_learner(settings, (Role.STUDENT,), num_classes=10, channels=3, device=CPU, key=0)
    return trainer, learner


def policies_of_round(settings: Settings, number: int) -> dict[Role, Policy]:
    """Return both roles' random policies of one round."""
    space = settings.search_space()
    return {role: random_policy(space, role, random.Random(f"{number} {role}")) for role in Role}


def timed(arms: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Run every arm once a round, in reversed order every other round, after one to warm up; return CPU seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(rounds + 1):
            for name in list(arms)[:: 1 if number % 2 else -1]:
                started = time.process_time()
                arms[name](number)
                if number:
                    seconds[name].append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    return seconds


def head(title: str, rounds: int, clock: str = "CPU time") -> None:
    """Print what was measured where."""
    kind = "fast" if has_fast_bfloat16(CPU) else "slow"
    print(f"\n{title}; {rounds} rounds, 1 thread, {clock}; load {os.getloadavg()[0]:.1f}")
    print(f"{processor() or platform.processor()}, {os.cpu_count()} CPUs, torch {torch.__version__}, "
          f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {kind}")  # fmt: skip


def table(seconds: dict[str, list[float]], base: str, per: int = 1) -> dict[str, float]:
    """Print milliseconds and how many times as fast as the base each arm is; return the medians of paired ratios."""
    print(f"{'arm':44}{'CPU ms':>10}{'base / it':>12}{'quartiles':>16}")
    medians = {}
    for name, spent in seconds.items():
        low, medians[name], high = quartiles([b / s for b, s in zip(seconds[base], spent)])
        print(f"{name:44}{1000 * statistics.median(spent) / per:10.1f}{medians[name]:12.2f}{low:10.2f} -{high:4.2f}")
    return medians
