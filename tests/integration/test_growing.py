"""A cluster that grows when a search asks for it, and shrinks when the search has let go: Ray's own autoscaler."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray as ray_api
import yaml
from ray_helpers import descendants

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())"]
HEAD_ID = "f" * 51 + "00000"
"""What Ray's provider of made-up nodes calls the head."""


def description(address: str) -> dict:
    """A head without CPUs, one worker of one CPU, a second on demand, and no third."""
    # What any description has; made-up nodes are set up by no command
    usual = yaml.safe_load((Path(ray_api.__file__).parent / "autoscaler/local/defaults.yaml").read_text())
    usual |= {name: [] for name in usual if name.endswith("_commands")}
    return usual | {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        "provider": {
            # By its path: what Ray keeps under the name fake_multinode lacks a file where Ray was installed from PyPI
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 1, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
    }


class GrowingCluster:
    """A head and its autoscaler. `ray.cluster_utils.AutoscalingCluster` would stop every Ray of this machine."""

    def __init__(self, folder: Path, second_autoscaler: bool):
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        self.address = f"{ray_api.util.get_node_ip_address()}:{port}"
        (folder / "cluster.yaml").write_text(yaml.safe_dump(description(self.address)))
        self.environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": str(int(second_autoscaler)),
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        }
        command = ["start", "--head", f"--port={port}", "--num-cpus=0", "--block", "--disable-usage-stats"]
        command += [f"--autoscaling-config={folder / 'cluster.yaml'}", "--include-dashboard=false"]
        with open(folder / "head.log", "w") as log:
            self.head = subprocess.Popen([*RAY, *command], env=self.environment, stdout=log, stderr=log)

    def nodes(self) -> int:
        """How many nodes are up, the head among them."""
        return sum("/raylet/raylet" in command.split(" ")[0] for command in descendants(self.head.pid).values())

    def search(self, folder: Path, generations: int, *settings: str) -> subprocess.Popen:
        command = [sys.executable, str(ROOT / "tests/integration/growing_search.py"), str(folder), str(generations)]
        # A driver on another machine has none of the head's variables
        mine = self.environment | {"RAY_ADDRESS": self.address}
        del mine["RAY_enable_autoscaler_v2"], mine["RAY_FAKE_CLUSTER"], mine["RAY_CLOUD_INSTANCE_ID"]
        return subprocess.Popen(
            [*command, *settings], env=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        everything = descendants(self.head.pid)
        self.head.terminate()
        try:
            self.head.wait(30)
        except subprocess.TimeoutExpired:
            self.head.kill()
        for pid in everything:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def seconds_until(holds: Callable[[], bool], most: float) -> float:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < most
        time.sleep(0.1)
    return time.monotonic() - started


@pytest.fixture(params=[True, False], ids=["second autoscaler", "first autoscaler"])
def cluster(request, tmp_path) -> Iterator[GrowingCluster]:
    cluster = GrowingCluster(tmp_path, request.param)
    try:
        seconds_until(lambda: cluster.nodes() == 2, 90)
        yield cluster
    finally:
        cluster.close()


@pytest.mark.slow
def test_nodes_come_because_a_search_asks_and_go_when_it_has_let_go(cluster, tmp_path):
    """Four members could use four nodes. Of more than it may have, the second autoscaler brings none."""
    time.sleep(5)
    assert cluster.nodes() == 2, "nobody asked yet"
    driver = cluster.search(tmp_path / "run", 60)
    output, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    found = json.loads(output.splitlines()[-1])
    assert sorted(found["before"]) == [0, 1] and sorted(found["after"]) == [0, 1, 1]
    assert found["finished"] and found["scores"] == 240 and len(found["seconds"]) == 2
    left = seconds_until(lambda: cluster.nodes() == 2, 60)
    joined = found["seconds"][1]
    print(f"\nthe second node trained {joined:.1f} s after the first score, and left {left:.1f} s after the end")


@pytest.mark.slow
def test_what_a_killed_driver_asked_for_stays_until_the_next_search_ends(cluster, tmp_path):
    driver = cluster.search(tmp_path / "killed", 1000)
    seconds_until(lambda: cluster.nodes() == 3, 90)
    driver.kill()
    driver.communicate()
    time.sleep(20)
    assert cluster.nodes() == 3, "an idle node goes after 6 s, unless it was asked for"
    output, errors = cluster.search(tmp_path / "next", 2, "slots.count=1").communicate(timeout=120)
    assert json.loads(output.splitlines()[-1])["finished"], errors
    seconds_until(lambda: cluster.nodes() == 2, 60)
