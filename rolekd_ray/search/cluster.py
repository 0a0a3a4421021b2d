"""Ray itself: starting or joining it, and what fits on it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import floor
from typing import Any

import ray

from rolekd_ray.config import SlotSettings, WorkerResources
from rolekd_ray.errors import ConfigError
from rolekd_ray.search.member import MEMBER_BYTES, NAMESPACE


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or run a private Ray on this machine; leave Ray as it was found.

    Never joins by guess: after a crash Ray would follow a stale address file.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        ray.shutdown()


def slot_count(settings: SlotSettings, population_size: int) -> int:
    """Return how many slots to start.

    Raises:
        ConfigError: not even one fits on any node, fewer fit than asked for, or there is no memory for the members'
            trials; gives the numbers.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = settings.resources_per_worker
    fitting = slots_that_fit(settings)
    have = [f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes]
    if fitting == 0 or (settings.count != "auto" and settings.count > fitting):
        workers = f"{settings.fewest_workers} workers of " if settings.most_workers > 1 else ""
        raise ConfigError(
            f"slots: got count {settings.count} of {workers}{each.cpus:g} CPUs and {each.gpus:g} GPUs each; expected "
            f"at most {fitting}, for the nodes have {'; '.join(have)}"
        )
    members = sum(int(node.get("memory", 0) // MEMBER_BYTES) for node in nodes)
    if population_size > members:
        raise ConfigError(
            f"search.population_size: got {population_size}; expected at most {members}, for a member's trial takes "
            f"{MEMBER_BYTES / 2**20:.0f} MiB of memory"
        )
    return min(fitting, population_size) if settings.count == "auto" else settings.count


def slots_that_fit(settings: SlotSettings) -> int:
    """Return how many slots the nodes that are there now could hold, were they empty.

    A worker lies on one node, a slot's workers on any. Slots of several sizes get all they can use, or the least.
    """
    places = sum(_places(node["Resources"], settings.resources_per_worker) for node in ray.nodes() if node["Alive"])
    return places // settings.most_workers or int(places >= settings.fewest_workers)


def _places(node: dict[str, float], each: WorkerResources) -> int:
    by_cpu = floor(node.get("CPU", 0) / each.cpus + 1e-9)
    if not each.gpus:
        return by_cpu
    gpus = node.get("GPU", 0)
    # A share of a GPU lies on one GPU: two GPUs hold four workers of 0.4, not five
    by_gpu = floor(gpus) * floor(1 / each.gpus + 1e-9) if each.gpus < 1 else floor(gpus / each.gpus)
    return min(by_cpu, by_gpu)
