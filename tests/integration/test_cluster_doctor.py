"""`rolekd doctor --cluster`: on two real nodes, and its judgements of nodes that this machine cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from rolekd_ray.errors import RolekdError
from rolekd_ray.search.node_findings import Node, judge_clocks, judge_facts, judge_storage

ROOT = Path(__file__).parents[2]
ONE, TWO = Node("10.0.0.1 aaaa", "aaaa", "10.0.0.1", 0), Node("10.0.0.2 bbbb", "bbbb", "10.0.0.2", 1)


def fact(**changes):
    """What a sound node says of itself."""
    versions = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.15.0"}
    return {"versions": versions, "gpus": [], "open_files": (65536, 65536), "free_bytes": 2**40} | changes


def wrong(findings):
    """Check, node and advice of what is wrong."""
    return [(finding.check, finding.node, finding.advice) for finding in findings if finding.advice]


def test_sound_nodes_are_sound():
    assert not wrong(judge_facts({ONE: fact(), TWO: fact(gpus=["NVIDIA L4, driver 580.1"])}))


@pytest.mark.parametrize(
    "changes, check, advice",
    [
        ({"versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.14.0"}}, "torch", "expected 2.15.0"),
        ({"versions": {"python": "3.11.7", "ray": "2.60.0", "torch": None}}, "torch", "expected 2.15.0"),
        ({"gpus": []}, "GPUs", "expected the 1 that Ray counts"),
        ({"open_files": (1024, 65536)}, "open files", "ulimit -n 4096"),
        ({"free_bytes": 2**20}, "free disk", "make room"),
    ],
)
def test_what_is_wrong_with_a_node_is_said_of_that_node(changes, check, advice):
    sound = {"gpus": ["NVIDIA L4, driver 580.1"]}
    ((found, node, what_to_do),) = wrong(judge_facts({ONE: fact(), TWO: fact(**sound | changes)}))
    assert (found, node) == (check, TWO.name) and advice in what_to_do


def test_a_clock_is_wrong_only_if_the_slow_answer_cannot_explain_it():
    assert not wrong(judge_clocks({ONE: (0.0, 0.001), TWO: (5.9, 1.0)}))
    ((check, node, advice),) = wrong(judge_clocks({ONE: (0.0, 0.001), TWO: (-6.1, 1.0)}))
    assert (check, node) == ("clock", TWO.name) and "chrony" in advice


def test_a_folder_of_each_nodes_own_is_no_shared_storage():
    marks, fine = {ONE: "one", TWO: "two"}, {ONE: None, TWO: None}
    together = {"aaaa": "one", "bbbb": "two"}
    assert not wrong(judge_storage("/runs", marks, fine, {ONE: together, TWO: together}))
    apart = {ONE: {"aaaa": "one", "bbbb": None}, TWO: {"aaaa": None, "bbbb": "two"}}
    assert [node for _, node, _ in wrong(judge_storage("/runs", marks, fine, apart))] == [ONE.name, TWO.name]
    # A node that may not write does not make the others wrong
    read_only = {"aaaa": "one", "bbbb": None}
    ((_, node, advice),) = wrong(
        judge_storage("/runs", marks, {ONE: None, TWO: "Read-only file system"}, {ONE: read_only, TWO: read_only})
    )
    assert node == TWO.name and "give rights" in advice


@pytest.fixture(scope="module")
def cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def doctor(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "rolekd_ray", "doctor", "--cluster", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_real_nodes(cluster, tmp_path):
    done = doctor(cluster, "--nodes", "2", "--storage", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr + done.stdout
    rows = [line.split("  ") for line in done.stdout.splitlines() if line.rstrip().endswith("ok")]
    checks = [row[0] for row in rows]
    for check in ("python", "ray", "torch", "rolekd_ray", "GPUs", "open files", "free disk", "clock"):
        assert checks.count(check) == 2, check
    assert done.stdout.count("writable, the same for all") == 2
    assert done.stdout.count("MB/s") == 2
    assert list((tmp_path / "runs").iterdir()) == []  # no mark stays


@pytest.mark.slow
def test_storage_that_cannot_be_written_fails_and_says_what_to_do(cluster, tmp_path):
    (tmp_path / "file").touch()
    done = doctor(cluster, "--storage", str(tmp_path / "file" / "runs"))
    assert done.returncode == 1
    assert "mount it, give rights" in done.stderr and "Traceback" not in done.stderr


def test_nodes_that_do_not_join_are_told(monkeypatch):
    from rolekd_ray.search import cluster_doctor

    monkeypatch.setattr(cluster_doctor, "_nodes", lambda: [ONE])
    with pytest.raises(RolekdError, match=r"got 1 nodes after 0 s, 10\.0\.0\.1 aaaa; expected 2"):
        cluster_doctor._wait_for(2, seconds=0)
