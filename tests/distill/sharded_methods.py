"""Every method's loss and gradients as several workers find them, each with some rows of the batch."""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from method_cases import CLASSES, EVERY, case
from torch import Tensor

from rolekd_ray.training.sharding import Sharding

COUNT = 7
"""Images a batch, so that they are dealt out unevenly."""
Found = dict[str, Any]


def found_by(sharding: Sharding, name: str, count: int) -> Found:
    """The loss, the gradient of this worker's rows, and that of parameters, as `training.epochs` adds it up."""
    losses, whole = case(name, count=count)
    own: list[Tensor] = []

    def gathered(value: Tensor) -> Tensor:
        rows = sharding.rows(value.detach()).clone().requires_grad_(value.requires_grad)
        own.append(rows)
        return sharding.gather(rows, count)

    def all_gathered(features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {layer: gathered(value) for layer, value in features.items()}

    networks = replace(whole.networks, shards=sharding)
    networks.student.eval()  # BatchNorm over workers has tests of its own
    sure = 5.0 * torch.nn.functional.one_hot(whole.labels, CLASSES)  # or BSS would find nothing to attack
    outputs = replace(
        whole,
        logits_student=gathered(whole.logits_student) + sure,
        logits_teacher=gathered(whole.logits_teacher) + 2 * sure,
        features_student=all_gathered(whole.features_student),
        features_teacher=all_gathered(whole.features_teacher),
        networks=networks,
    )
    loss = losses(outputs, {name: 1.0})[name]
    loss.backward()
    if "networks" in losses.methods[name].takes:
        sharding.sum_gradients(networks.student)
    rows = [value.grad if value.grad is not None else torch.zeros_like(value) for value in own if value.requires_grad]
    # Those of the losses' own modules are whole on every worker
    parameters = [p.grad for p in (*losses.parameters(), *networks.student.parameters()) if p.grad is not None]
    return {"loss": loss.item(), "rows": [g.numpy() for g in rows], "parameters": [g.numpy() for g in parameters]}


def every_method(sharding: Sharding) -> dict[str, Found]:
    return {name: found_by(sharding, name, COUNT) for name in EVERY}


@contextmanager
def member(rank: int, workers: int, meeting: Path) -> Iterator[Sharding]:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # by name, for a host name need not be one that gloo can resolve
    wait = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers, timeout=wait)
    try:
        yield Sharding(rank, workers)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _second(meeting: Path, answers: Any) -> None:
    torch.set_num_threads(1)
    with member(1, 2, meeting) as sharding:
        answers.put(every_method(sharding))


def in_group(folder: Path) -> list[dict[str, Found]]:
    """What two workers find. This process is the first: most of the time goes into another's imports."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    second = context.Process(target=_second, args=(folder / "meeting", answers))
    second.start()
    with member(0, 2, folder / "meeting") as sharding:
        found = [every_method(sharding), answers.get(timeout=120)]
    second.join(60)
    return found


def joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Workers' rows, put together again."""
    return [np.concatenate(rows) for rows in zip(*parts, strict=True)]
