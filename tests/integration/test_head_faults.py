"""A cluster whose head dies or hangs, and a driver that dies on a cluster that lives on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from own_cluster import own_cluster
from ray_helpers import BOTH, TINY, facts, lineage, same_tree, tiny_settings, weights

from rolekd_ray.search.log import read_log
from rolekd_ray.search.population_search import search_population

EPOCHS = 60
SETTINGS = [word for setting in (*TINY, f"search.epochs={EPOCHS}") for word in ("--set", setting)]


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long-reference")
    search_population(folder, tiny_settings(f"search.epochs={EPOCHS}"), BOTH, local=True)
    return folder


def start(cluster, folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "rolekd_ray", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=cluster.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def when_scored(run: Path, count: int, process: subprocess.Popen) -> float:
    """Wait until a run's log holds so many scores; return the seconds waited."""
    started = time.monotonic()
    while not (run / "log.jsonl").exists() or len(facts(run)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < started + 200, "the search does not get on"
        time.sleep(0.02)
    return time.monotonic() - started


def assert_resumed_equal(cluster, folder: Path, reference: Path) -> None:
    _, errors = (resumed := start(cluster, folder, "resume", "runs/a")).communicate(timeout=300)
    assert resumed.returncode == 0, errors
    run = folder / "runs" / "a"
    assert not [record for record in read_log(run) if record["kind"] == "drop"]
    assert facts(run) == facts(reference) and len(facts(run)) == 4 * EPOCHS
    assert sorted(lineage(run)) == sorted(lineage(reference))
    assert same_tree(weights(run), weights(reference))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, number",
    [("gcs_server", signal.SIGKILL), ("gcs_server", signal.SIGSTOP), ("", signal.SIGKILL)],
    ids=["its GCS killed", "its GCS hangs", "all of it killed"],
)
def test_a_search_whose_head_is_lost_ends_and_says_how_to_go_on(tmp_path, long_reference, name, number):
    run = tmp_path / "runs" / "a"
    with own_cluster(tmp_path) as cluster:
        search = start(cluster, tmp_path, "search", "--name", "a", *SETTINGS)
        when_scored(run, 9, search)
        cluster.signal(name, number)
        started, scores = time.monotonic(), len(facts(run))
        _, errors = search.communicate(timeout=100)
        seconds, done = time.monotonic() - started, len(facts(run))
        print(f"\nended after {seconds:.1f} s with {search.returncode}, {done - scores} scores after the fault")
        print(errors[-900:])
        assert search.returncode == 1 and 30 < seconds < 60
        assert "has not answered for 45 s" in errors and "go on: rolekd resume runs/a" in errors
        assert "Traceback" not in errors and done < 4 * EPOCHS
    refused = start(cluster, tmp_path, "resume", "runs/a")  # on the head that is gone
    _, errors = refused.communicate(timeout=60)
    assert refused.returncode == 2 and f"RAY_ADDRESS: got '{cluster.address}', where nothing answers" in errors
    with own_cluster(tmp_path) as another:
        assert_resumed_equal(another, tmp_path, long_reference)


@pytest.mark.slow
def test_a_head_that_hangs_for_a_while_is_waited_for(tmp_path, long_reference):
    run = tmp_path / "runs" / "a"
    with own_cluster(tmp_path) as cluster:
        search = start(cluster, tmp_path, "search", "--name", "a", *SETTINGS)
        when_scored(run, 9, search)
        cluster.signal("gcs_server", signal.SIGSTOP)
        time.sleep(20)
        scores = len(facts(run))
        cluster.signal("gcs_server", signal.SIGCONT)
        print(f"\nthe next score {when_scored(run, scores + 1, search):.1f} s after the head woke up")
        _, errors = search.communicate(timeout=200)
        assert search.returncode == 0, errors
    assert facts(run) == facts(long_reference) and same_tree(weights(run), weights(long_reference))


@pytest.mark.slow
def test_a_driver_killed_three_times_on_a_cluster_that_lives_on(tmp_path, long_reference):
    run, waits, cleared = tmp_path / "runs" / "a", [], []
    with own_cluster(tmp_path) as cluster:
        driver = start(cluster, tmp_path, "search", "--name", "a", *SETTINGS)
        when_scored(run, 5, driver)
        for _ in range(3):
            kinds = [cluster.processes(f"ray::{kind}") for kind in ("Slot", "Member", "Dispatcher")]
            assert all(kinds)
            driver.kill()
            driver.communicate()
            done, killed = len(facts(run)), time.time()
            driver = start(cluster, tmp_path, "resume", "runs/a")  # at once, though the dead one's actors may be there
            while any(Path(f"/proc/{pid}").exists() for pids in kinds for pid in pids):
                assert time.time() < killed + 60
                time.sleep(0.05)
            cleared.append(time.time() - killed)
            when_scored(run, done + 5, driver)
            waits.append([r["time"] for r in read_log(run) if r["kind"] == "score"][done] - killed)
        _, errors = (second := start(cluster, tmp_path, "resume", "runs/a")).communicate(timeout=100)
        assert second.returncode == 2
        assert f"another process is writing this run (process {driver.pid} on" in errors
        print(f"\nthe next score after {waits} s; the dead driver's actors were gone after {cleared} s")
        _, errors = driver.communicate(timeout=200)
        assert driver.returncode == 0, errors
        assert_resumed_equal(cluster, tmp_path, long_reference)
        assert max(waits) <= 30
