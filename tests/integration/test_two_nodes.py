"""A real cluster of two nodes, one of which has another disk under the run's path."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_helpers import TINY

ROOT = Path(__file__).parents[2]
SETTINGS = [word for setting in (*TINY, "search.population_size=2", "search.epochs=1") for word in ("--set", setting)]
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]


def may_mount() -> bool:
    """Whether this process may give another its own view of the disks."""
    tried = shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return bool(tried) and tried.returncode == 0


@pytest.fixture
def cluster(tmp_path) -> Iterator[str]:
    """Two nodes; `tmp_path/blind` is another, empty disk on the second. Gives the address."""
    if not may_mount():
        pytest.skip("needs the right to mount: unshare -m")
    (tmp_path / "blind").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = ["--num-cpus=1", "--block", "--disable-usage-stats"]
    head = ["start", "--head", f"--port={address.split(':')[1]}", "--node-ip-address=127.0.0.1"]
    second = ["start", f"--address={address}", "--node-ip-address=127.0.0.1"]
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(tmp_path / "blind")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    started = []
    for command in ([*RAY, *head, "--include-dashboard=false"], [*mount, *RAY, *second]):
        out = open(tmp_path / f"node{len(started)}.log", "w")  # noqa: SIM115
        started.append(subprocess.Popen([*command, *common], env=environment, stdout=out, stderr=out))
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (tmp_path / out.name).read_text():
            assert time.monotonic() < deadline and started[-1].poll() is None, (tmp_path / out.name).read_text()
            time.sleep(0.2)
    yield address
    for process in reversed(started):
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_folder_of_one_node_is_refused_before_anything_is_written(cluster, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "rolekd_ray", "search", "--name", "a", *SETTINGS, "--storage"]
    done = subprocess.run(
        [*command, str(tmp_path / "blind" / "runs")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count(f"not seen from node {socket.gethostname()} (") == 1 and "Traceback" not in done.stderr
    assert not list((tmp_path / "blind").iterdir())
    done = subprocess.run(
        [*command, str(tmp_path / "runs")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
