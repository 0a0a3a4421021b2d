"""Ray itself: starting or joining it, and what fits on it."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from math import floor
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rolekd_ray.config import SlotSettings, WorkerResources
from rolekd_ray.errors import ConfigError, RolekdError, StorageError
from rolekd_ray.files import write_atomically
from rolekd_ray.search.member import MEMBER_BYTES, NAMESPACE
from rolekd_ray.storage import Place

LOOK_SECONDS = 120
CONNECT_SECONDS = 10.0
# Ray tells nobody which nodes its autoscaler could add
_GROWING = (
    ". Nodes that an autoscaler could still add do not count: keep up what the search needs to start (min_workers, "
    "minReplicas), and it asks for more with count: auto"
)


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or run a private Ray on this machine; leave Ray as it was found.

    Never joins by guess: after a crash Ray would follow a stale address file.

    Raises:
        ConfigError: nothing answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"include_dashboard": False} if is_private() else {}
    _check_answers(_address())
    ray.init(address=_address(), namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        ray.shutdown()


def is_private() -> bool:
    """Whether Ray is this process's own, not a cluster that RAY_ADDRESS names."""
    return _address() == "local"


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or "local"


def _check_answers(address: str) -> None:
    """Refuse an address that nobody listens at: Ray would try for three and a half minutes."""
    host, _, port = address.rpartition(":")
    if "/" in host or not port.isdigit():
        return  # local, auto, a client's address
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"RAY_ADDRESS: got {address!r}, where nothing answers: {error}; expected the head of a running cluster, "
            "as host:port"
        ) from error


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
            f"at most {fitting}, for the nodes have {'; '.join(have)}{'' if is_private() else _GROWING}"
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
    places = workers_that_fit(settings)
    return places // settings.most_workers or int(places >= settings.fewest_workers)


def workers_that_fit(settings: SlotSettings) -> int:
    """Return how many workers the nodes that are there now could hold, were they empty."""
    return sum(_places(node["Resources"], settings.resources_per_worker) for node in ray.nodes() if node["Alive"])


def _places(node: dict[str, float], each: WorkerResources) -> int:
    by_cpu = floor(node.get("CPU", 0) / each.cpus + 1e-9)
    if not each.gpus:
        return by_cpu
    gpus = node.get("GPU", 0)
    # A share of a GPU lies on one GPU: two GPUs hold four workers of 0.4, not five
    by_gpu = floor(gpus) * floor(1 / each.gpus + 1e-9) if each.gpus < 1 else floor(gpus / each.gpus)
    return min(by_cpu, by_gpu)


def check_nodes_see(storage: Place, settings: SlotSettings) -> None:
    """Check that all nodes with room for a worker see the same storage as this process: they read and write states.

    A marker is written, looked for from each node, and deleted. One node with a folder needs no look.

    Raises:
        StorageError: names the nodes that do not see it.
    """
    each = settings.resources_per_worker
    nodes = [node for node in ray.nodes() if node["Alive"] and _places(node["Resources"], each)]
    if len(nodes) <= 1 and isinstance(storage, Path):
        return
    marker = _existing(storage.absolute()) / f".rolekd-{uuid4().hex}"
    write_atomically(marker, marker.name)
    try:
        blind = [f"{_name(node)}: {problem}" for node in nodes if (problem := _look_from(node, marker))]
    finally:
        marker.unlink(missing_ok=True)
    if blind:
        raise StorageError(
            *(f"{storage}: not seen from node {problem}" for problem in blind),
            f"{storage}: expected storage that all {len(nodes)} nodes share: a network folder mounted under this path "
            "everywhere, or s3://bucket/prefix with credentials on every node",
        )


def sees(marker: Place) -> str | None:
    """Return what keeps this process from seeing a marker; None if it sees it."""
    try:
        return None if marker.read_text() == marker.name else "another file lies there"
    except FileNotFoundError:
        return f"it has another {marker.parent}, or none"
    except (OSError, RolekdError) as error:
        return str(error)


def _look_from(node: dict[str, Any], marker: Place) -> str | None:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(sees).options(num_cpus=0, scheduling_strategy=there)
    try:
        return ray.get(task.remote(marker), timeout=LOOK_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        return f"it cannot look: {str(error).strip().splitlines()[-1]}"


def _existing(folder: Place) -> Place:
    """Return the folder or the nearest one above it that exists; a prefix of objects needs not to."""
    while isinstance(folder, Path) and not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
