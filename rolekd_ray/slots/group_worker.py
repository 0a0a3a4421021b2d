"""What runs in every worker of a group: a loop that takes commands from the slot's actor."""

import os
import time
from functools import partial
from threading import Thread
from typing import Any
from uuid import uuid4

import ray
import torch
import torch.distributed as dist
from ray.train.torch import get_device

from rolekd_ray import progress
from rolekd_ray.errors import TrainingError
from rolekd_ray.policy.population import Job
from rolekd_ray.training.sharding import Sharding

NAMESPACE = "rolekd_ray"
SHOW_SECONDS = 1.0


def _ask(owner: Any, group: str, done: int) -> tuple[int, Job | None] | None:
    answer: Any = ray.get(owner.next.remote(group, done))
    return answer


def _show_progress(owner: Any, rank: int) -> None:
    shown = None
    while True:
        if progress.done() != shown:
            shown = progress.done()
            owner.advanced.remote(rank, shown)
        time.sleep(SHOW_SECONDS)


def serve(config: dict[str, Any]) -> None:
    """Build this process's worker, then train what the slot hands out until it says leave.

    The first worker asks and answers; the others hear commands from it, by gloo beside NCCL. An error that is not the
    same on every worker ends the process: the others may be waiting for it in the middle of a batch, and all of them
    are started again.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    talk: Any = dist.new_group(backend="gloo")
    sharding = Sharding(dist.get_rank(), dist.get_world_size(), talk=talk)
    owner = ray.get_actor(config["owner"], namespace=NAMESPACE)
    Thread(target=_show_progress, args=(owner, sharding.rank), daemon=True).start()
    group, done = sharding.decided_by_first(lambda: uuid4().hex), 0
    try:
        worker = config["make_worker"](sharding=sharding)
    except Exception as error:  # whoever waits for the group wants to know why
        ray.get(owner.refuse.remote(error))
        raise
    pids: list[Any] = [None] * sharding.workers
    dist.all_gather_object(pids, os.getpid(), group=talk)
    if sharding.rank == 0:
        ray.get(owner.join.remote(group, pids))
    while True:
        command = sharding.decided_by_first(partial(_ask, owner, group, done))
        if command is None:
            continue
        done, job = command
        if job is None:
            return
        outcome: tuple[dict[str, Any] | None, Exception | None]
        try:
            outcome = worker.train(job), None
        except TrainingError as error:  # from losses that are the same everywhere, so everywhere
            outcome = None, error
        except Exception as error:
            ray.get(owner.reply.remote(group, done, None, error))
            raise
        if sharding.rank == 0:
            ray.get(owner.reply.remote(group, done, *outcome))
