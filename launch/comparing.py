"""What the comparisons share: training many networks side by side, evaluating each once, tables of means."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from rolekd_ray import FinalTraining, evaluate_checkpoint, train_final
from rolekd_ray.errors import RolekdError

T, R = TypeVar("T"), TypeVar("R")
Job = tuple[str, int, FinalTraining]
"""Arm, seed, and what to train."""


def side_by_side(work: Callable[[T], R], jobs: Iterable[T], processes: int) -> list[R]:
    """Return the results of work on jobs, one core each, in their order."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, jobs))


def train(job: Job) -> None:
    """Train one network, unless it is there; say so when a loss is not finite, and go on."""
    arm, seed, training = job
    try:
        metrics = train_final(training)
        print(f"{arm}, seed {seed}: validation {metrics['validation_accuracy']:.4f}, {metrics['seconds']:.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    except RolekdError as error:
        print(f"{arm}, seed {seed}: {error}", file=sys.stderr, flush=True)


def evaluated(training: FinalTraining) -> dict[str, float] | None:
    """Return a finished training's metrics; the test images are read once per network, and the answer is kept."""
    plan = training.plan()
    if training.finished(plan) is None:
        return None
    file = training.folder / "evaluation.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    if known.get("plan") != plan:  # of another training in the same folder
        known = {"plan": plan, "found": evaluate_checkpoint(training.folder)}
        file.write_text(json.dumps(known))
    return known["found"]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return mean ± standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {deviation(values):.{digits}f}"


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1); NaN of one value."""
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def difference(values: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference of pairs of one seed, which share first weights and order, and its standard error."""
    pairs = [own - other for own, other in zip(values, others, strict=True)]
    return statistics.mean(pairs), deviation(pairs) / len(pairs) ** 0.5


def put(page: Path, lines: Sequence[str], mark: str = "table") -> None:
    """Put lines between the marks of a page."""
    text = page.read_text()
    start, end = (text.index(f"<!-- {mark}: {place} -->") for place in ("begin", "end"))
    page.write_text(f"{text[:start]}<!-- {mark}: begin -->\n" + "\n".join(lines) + f"\n{text[end:]}")
