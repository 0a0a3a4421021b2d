"""A Ray cluster of one node that a test starts by `ray start`, as a person would, and may break."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]


class OwnCluster:
    """Its processes carry a mark in their environment, so they are found however they were started."""

    def __init__(self, folder: Path, cpus: int = 2):
        self.mark = f"ROLEKD_TEST_CLUSTER={uuid4().hex}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        head = ["start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"]
        quiet = ["--include-dashboard=false", "--disable-usage-stats"]
        with open(folder / f"head-{port}.log", "w") as out:
            marked = self.environment() | dict([self.mark.split("=")])
            subprocess.run([*RAY, *head, *quiet], env=marked, stdout=out, stderr=out, check=True, timeout=120)

    def environment(self) -> dict[str, str]:
        """What a command needs to join it."""
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
        return os.environ | variables | {"RAY_ADDRESS": self.address}

    def processes(self, name: str = "") -> list[int]:
        """Ids of its processes, or of those whose command line holds a name."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                marked = entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0")
                if marked and name.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # ended meanwhile
        return found

    def signal(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to all its processes of a name; there must be one."""
        pids = self.processes(name)
        assert pids, name
        _signal(pids, number)


@contextmanager
def own_cluster(folder: Path, cpus: int = 2) -> Iterator[OwnCluster]:
    """Start a cluster; nothing of it is left afterwards."""
    cluster = OwnCluster(folder, cpus)
    try:
        yield cluster
    finally:
        while pids := cluster.processes():
            _signal(pids, signal.SIGKILL)


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # ended meanwhile
