"""What the cluster's doctor asks a node: runs in an actor there.

The module travels to the nodes by value and imports nothing of this project, for a node that lacks the project, or has
another version of it, is one of the things to be found.
"""

import os
import platform
import resource
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
ALL_REDUCE_BYTES, ALL_REDUCE_ROUNDS = 2**24, 5


class NodeProbe:
    """Answers about the node it runs on."""

    def ready(self) -> bool:
        """Return when the process is up: what follows can be timed."""
        return True

    def clock(self) -> float:
        """Return the time in seconds since 1970."""
        return time.time()

    def facts(self, packages: Sequence[str], storage: str) -> dict[str, Any]:
        """Return versions (None: not installed), GPUs, open files, and free bytes where `storage` is or would be."""
        found = {"python": platform.python_version()} | {package: _version(package) for package in packages}
        return {
            "versions": found,
            "gpus": _gpus(),
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "free_bytes": _free_bytes(storage),
        }

    def leave_mark(self, folder: str, name: str, text: str) -> str | None:
        """Write a file into a folder, which is made; return what went wrong, None if nothing did."""
        try:
            filesystem, path = _open(folder)
            filesystem.create_dir(path)
            with filesystem.open_output_stream(f"{path}/{name}") as stream:
                stream.write(text.encode())
        except (OSError, ImportError) as error:
            return str(error)
        return None

    def see_marks(self, folder: str, names: Sequence[str]) -> dict[str, str | None]:
        """Return what the files of a folder say, by name; None for those that cannot be read."""
        # Opened by name, not listed: NFS may show an old listing for half a minute, but opens the newest file
        return {name: _read(folder, name) for name in names}

    def wipe(self, folder: str) -> None:
        """Delete the folder of marks, if it is there."""
        with suppress(OSError, ImportError):
            filesystem, path = _open(folder)
            filesystem.delete_dir(path)


class Reducer:
    """One rank of an all-reduce between nodes."""

    def __init__(self, address: str):
        # gloo binds to the address of the host's name, which Debian and Ubuntu define as 127.0.1.1
        interface = _interface(address)
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)

    def free_port(self) -> int:
        """Return a port that is free on this node."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return listener.getsockname()[1]

    def bandwidth(self, backend: str, rank: int, size: int, rendezvous: str) -> float:
        """Return bytes per second that each rank moved (`busbw` of Nvidia's nccl-tests), median of some rounds."""
        from datetime import timedelta
        from statistics import median

        import torch
        from torch import distributed

        torch.set_num_threads(1)
        distributed.init_process_group(backend, rendezvous, timedelta(seconds=60), size, rank)
        tensor = torch.ones(ALL_REDUCE_BYTES // 4, device="cuda" if backend == "nccl" else "cpu")
        try:
            seconds = median(self._round(tensor) for _ in range(ALL_REDUCE_ROUNDS))
        finally:
            distributed.destroy_process_group()
        return 2 * (size - 1) / size * ALL_REDUCE_BYTES / seconds

    def _round(self, tensor: Any) -> float:
        from torch import distributed

        distributed.barrier()
        tensor.fill_(1.0)
        started = time.perf_counter()
        distributed.all_reduce(tensor)
        total = tensor[0].item()  # waits for the GPU
        seconds = time.perf_counter() - started
        if total != distributed.get_world_size():
            raise RuntimeError(f"all-reduce: got {total}; expected {distributed.get_world_size()}")
        return seconds


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Return each GPU's name and driver. Not by torch: Ray hides GPUs from actors that reserve none."""
    try:
        done = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [", driver ".join(part.strip() for part in line.split(",")) for line in done.stdout.splitlines()]


def _open(folder: str) -> tuple[Any, str]:
    """Return the filesystem of a folder, or of an address such as `s3://…`, and the path on it."""
    from pyarrow.fs import FileSystem  # not above: a node without it can still say so

    return FileSystem.from_uri(folder)


def _free_bytes(storage: str) -> int:
    """Return the free bytes under a folder; for a store without disks, those of the node's own files."""
    folder = Path(tempfile.gettempdir() if "://" in storage else storage)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _read(folder: str, name: str) -> str | None:
    try:
        filesystem, path = _open(folder)
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            return stream.read().decode()
    except (OSError, ImportError):
        return None


def _interface(address: str) -> str | None:
    """Return the network interface that has an IPv4 address; None: none has."""
    import fcntl

    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name[:15].encode()))  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return None
