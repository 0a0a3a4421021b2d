"""Starting a worker group by Ray Train, and hearing of deaths in it. Imports torch: for who starts one alone."""

import os
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import ray
from ray.train import UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

# What ray.train exports; type checkers cannot tell
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from rolekd_ray.config import SlotSettings
from rolekd_ray.slots.group_worker import NAMESPACE, serve
from rolekd_ray.slots.interface import Worker
from rolekd_ray.storage import Place, for_ray


class _Watch(UserCallback):
    """Tells a group's owner about deaths as soon as Ray Train sees them; runs in Ray Train's controller."""

    def __init__(self, owner: str):
        self.owner = owner

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        reason = "; ".join(f"worker {rank}: {error}" for rank, error in worker_exceptions.items())
        ray.get_actor(self.owner, namespace=NAMESPACE).lost.remote(reason[:500])


def launch(make_worker: Callable[..., Worker], settings: SlotSettings, owner: str, storage: Place) -> None:
    """Start a group and stay until it has ended; see `GroupSlot` for the arguments, `owner` is its name."""
    each, most, fewest = settings.resources_per_worker, settings.most_workers, settings.fewest_workers
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon a dead worker is noticed
    TorchTrainer(
        serve,
        train_loop_config={"owner": owner, "make_worker": make_worker},
        scaling_config=ScalingConfig(
            num_workers=most if most == fewest else (fewest, most),
            use_gpu=each.gpus > 0,
            resources_per_worker={"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}),
            placement_strategy="PACK",
        ),
        torch_config=TorchConfig(backend="nccl" if each.gpus else "gloo"),
        run_config=RunConfig(  # type: ignore[arg-type]
            # Ray Train goes on with a run of the same name; a new group must not
            name=f"{owner}-{uuid4().hex[:8]}",
            **for_ray(storage),
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=10),
            callbacks=[_Watch(owner)],
        ),
    ).fit()
