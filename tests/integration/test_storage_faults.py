"""Storage that fails in the middle of a search on Ray: it ends and says why, and goes on once that is mended."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import breakable_disk as disks
import pytest
from object_store import BUCKET, objects, s3_server
from own_cluster import ROOT
from ray_helpers import BOTH, TINY, facts, lineage, same_tree, tiny_settings, weights
from slow_store import late_proxy

from rolekd_ray.search.log import has_log, read_log
from rolekd_ray.search.population_search import search_population
from rolekd_ray.storage import Place, place

EPOCHS = 12
SETTINGS = [word for setting in (*TINY, f"search.epochs={EPOCHS}") for word in ("--set", setting)]


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory) -> Path:
    """The search in one process on a sound disk."""
    folder = tmp_path_factory.mktemp("long-reference")
    search_population(folder, tiny_settings(f"search.epochs={EPOCHS}"), BOTH, local=True)
    return folder


@pytest.fixture
def disk(tmp_path) -> Iterator[disks.BreakableDisk]:
    if (lacking := disks.missing()) is not None:
        pytest.skip(lacking)
    with disks.breakable_disk(tmp_path) as disk:
        yield disk


def when_scored(run: Place, count: int, process: subprocess.Popen) -> None:
    """Wait until a run's log holds so many scores."""
    deadline = time.monotonic() + 200
    while not has_log(run) or len(facts(run)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.02)


def assert_ended_for_storage(process: subprocess.Popen, *words: str, most_seconds: float = 30) -> None:
    """The search ended in time, and said what it could not write, why, and how to go on."""
    started = time.monotonic()
    _, errors = process.communicate(timeout=600)
    seconds = time.monotonic() - started
    print(f"\nended after {seconds:.1f} s with exit code {process.returncode}")
    print("\n".join(line for line in errors.splitlines() if "error" in line or "go on" in line))
    assert process.returncode == 2, errors
    assert "Traceback" not in errors, errors
    assert not [word for word in words if word not in errors], errors
    assert seconds < most_seconds


def assert_ended_equal(run: Place, reference: Path) -> None:
    assert not [record for record in read_log(run) if record["kind"] == "drop"]
    assert facts(run) == facts(reference)
    assert sorted(lineage(run)) == sorted(lineage(reference))
    assert same_tree(weights(run), weights(reference))


@pytest.mark.slow
@pytest.mark.parametrize(
    "break_it, mend, cause",
    [
        (disks.BreakableDisk.turn_read_only, disks.BreakableDisk.repair, "Read-only file system"),
        (disks.BreakableDisk.fill, disks.BreakableDisk.make_room, "No space left on device"),
    ],
    ids=["read-only", "full"],
)
def test_a_disk_that_fails_in_a_search_on_ray(disk, long_reference, break_it: Callable, mend: Callable, cause: str):
    run = disk.at / "runs" / "a"
    search = disk.start("search", "--name", "a", *SETTINGS)
    when_scored(disk.see(run), 9, search)
    break_it(disk)
    assert_ended_for_storage(search, "runs/a", cause, "go on: rolekd resume runs/a")
    done = facts(disk.see(run))
    assert 9 <= len(done) < 4 * EPOCHS
    mend(disk)
    kept = facts(disk.see(run))  # a line whose fsync failed was seen, and never counted
    assert kept.items() <= done.items() and len(kept) >= len(done) - 1
    _, errors = (resumed := disk.start("resume", "runs/a")).communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert_ended_equal(disk.see(run), long_reference)
    assert not [path for path in disk.see(run).rglob(".*") if "tune" not in path.parts], "half-written"


# ---- an object store that answers late, or not at all

FEW = [word for setting in (*TINY, "search.population_size=2", "search.epochs=4") for word in ("--set", setting)]


@pytest.fixture(scope="module")
def short_reference(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short-reference")
    settings = tiny_settings("search.population_size=2", "search.epochs=4")
    search_population(folder, settings, BOTH, local=True)
    return folder


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with s3_server() as url:
        yield url


def start(url: str, *arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AWS_ENDPOINT_URL": url}
    command = [sys.executable, "-m", "rolekd_ray", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_record(number: int, act: Callable[[], object]) -> Callable[[bytes], None]:
    """Act once, when a request that puts the log's n-th record comes by."""
    left = [act]

    def seen(request: bytes) -> None:
        if left and re.match(rb"PUT \S+/log/%08d\.json" % number, request):
            left.pop()()

    return seen


def timed(url: str, *arguments: object) -> float:
    started = time.monotonic()
    _, errors = (process := start(url, *arguments)).communicate(timeout=300)
    assert process.returncode == 0, errors
    assert not re.search("hung|no longer holds|another process", errors), errors
    return time.monotonic() - started


@pytest.mark.slow
def test_a_store_that_answers_late_and_stalls_changes_nothing(store, short_reference):
    runs = place(f"s3://{BUCKET}/late-{os.urandom(4).hex()}")
    with late_proxy(store, 0.0) as proxy:
        seconds = {"at once": timed(proxy.url, "search", "--storage", runs, "--name", "at-once", *FEW)}
        requests = proxy.requests
    with late_proxy(store, 0.3) as proxy:
        seconds["late"] = timed(proxy.url, "search", "--storage", runs, "--name", "late", *FEW)
        proxy.seen = at_record(4, lambda: proxy.stall(15))
        seconds["late, and 15 s not at all"] = timed(proxy.url, "search", "--storage", runs, "--name", "stalled", *FEW)
    print(f"\n{seconds}; {requests} requests")
    for name in ("at-once", "late", "stalled"):
        assert_ended_equal(runs / name, short_reference)
    assert not [name for name in objects(runs) if "lock" in name], "leases are given back"


@pytest.mark.slow
def test_a_store_that_falls_silent_ends_the_search_in_finite_time(store, short_reference):
    """Minutes: each of the requests that close a search waits a minute for an answer, one after the other."""
    run = place(f"s3://{BUCKET}/silent-{os.urandom(4).hex()}") / "a"
    with late_proxy(store, 0.0) as proxy:
        proxy.seen = at_record(3, proxy.fall_silent)
        search = start(proxy.url, "search", "--storage", run.parent, "--name", "a", *FEW)
        when_scored(run, 2, search)
        assert_ended_for_storage(search, str(run), "cannot be reached", "go on: rolekd resume", most_seconds=500)
        proxy.seen = lambda request: None
        proxy.speak()
        print(f"resumed in {timed(proxy.url, 'resume', run):.1f} s")
    assert_ended_equal(run, short_reference)
