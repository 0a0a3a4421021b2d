"""What this machine can do, and what is missing."""

import os
import resource
import shutil
import sys
import time
from pathlib import Path
from uuid import uuid4

import torch
from rich.console import Group
from rich.markup import escape

from rolekd_ray.errors import StorageError
from rolekd_ray.reporting.tables import plain_table, titled
from rolekd_ray.search.member import MEMBER_BYTES
from rolekd_ray.search.run_directory import PACKAGES, installed_version
from rolekd_ray.storage import ObjectPath, Place, check_storage
from rolekd_ray.training.precision import has_fast_bfloat16

LEAST_FILES, LEAST_FREE_BYTES = 4096, 2**30


def examine(storage: Place) -> tuple[Group, bool]:
    """Return a table of findings and whether nothing needed is missing.

    Args:
        storage: where runs would be written.
    """
    rows = [_python(), *_packages(), *_devices(), _memory(), _storage(storage), _open_files(), _ray()]
    table = plain_table("what", "found", "")
    for what, found, healthy in rows:
        verdict = "" if healthy is None else "[green]ok[/green]" if healthy else "[red]missing[/red]"
        table.add_row(escape(what), escape(found), verdict)
    return titled("What this machine can do", table), all(healthy is not False for *_, healthy in rows)


Row = tuple[str, str, bool | None]


def _python() -> Row:
    return "python", ".".join(map(str, sys.version_info[:3])), sys.version_info >= (3, 11)


def _packages() -> list[Row]:
    found = {package: installed_version(package) for package in PACKAGES}
    return [(package, version or "not installed", version is not None) for package, version in found.items()]


def _devices() -> list[Row]:
    cpu = torch.device("cpu")
    rows: list[Row] = [("CPUs", f"{os.cpu_count()}, one slot each by default", True)]
    rows.append(("bfloat16 on CPU", "fast" if has_fast_bfloat16(cpu) else "slow: float32 is used", None))
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows.append(("GPUs", ", ".join(names) or "none: slots train on CPUs", None))
    return rows


def _memory() -> Row:
    available = _available_bytes()
    members = available // (2 * MEMBER_BYTES)
    return "free memory", f"{available / 2**30:.1f} GiB, room for about {members} members' trials", members >= 2


def _available_bytes() -> int:
    """Return the memory that programs can still get: what Linux keeps as a cache of files counts, for it gives way."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _storage(storage: Place) -> Row:
    if isinstance(storage, ObjectPath):
        return _object_store(storage)
    folder = storage.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    return (
        f"storage {storage}",
        f"{free / 2**30:.1f} GiB free, {'' if writable else 'not '}writable",
        (writable and free > LEAST_FREE_BYTES),
    )


def _object_store(storage: ObjectPath) -> Row:
    """Ask the store, write and delete an object; say how long one takes: a record of the log takes as much."""
    probe, started = storage / f".rolekd-{uuid4().hex}", time.perf_counter()
    try:
        check_storage(storage)
        probe.write_bytes(b"?")
        seconds = time.perf_counter() - started
        probe.unlink()
    except StorageError as error:
        return f"storage {storage}", str(error), False
    return f"storage {storage}", f"writable, {seconds * 1000:.0f} ms to begin and write", True


def _open_files() -> Row:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return "open files", f"{soft} (up to {hard})", soft >= LEAST_FILES or hard >= LEAST_FILES


def _ray() -> Row:
    """Start Ray, or join the cluster, and count what it has."""
    import ray

    from rolekd_ray.search.cluster import ray_session

    try:
        with ray_session():
            have = ray.cluster_resources()
            nodes = sum(node["Alive"] for node in ray.nodes())
    except (RuntimeError, ConnectionError, TimeoutError) as error:
        return "Ray", f"does not start: {error}", False
    return "Ray", f"{nodes} nodes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs", True
