"""The command line killed, stopped and resumed, with real Ray processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_helpers import TINY, descendants, facts, lineage, same_tree, weights

from rolekd_ray.search.log import LOG

ROLEKD = [sys.executable, "-m", "rolekd_ray"]


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*ROLEKD, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with Ctrl-C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def overrides() -> list[str]:
    return [argument for override in TINY for argument in ("--set", override)]


def wait_for_scores(run: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until so many scores are in the log."""
    deadline = time.monotonic() + 300
    while not (run / LOG).exists() or (run / LOG).read_bytes().count(b'"score"') < 2 * count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.05)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL a driver and every Ray process below it at once."""
    pids = [process.pid, *descendants(process.pid)]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=30)


def assert_ended_equal(run: Path, reference: Path) -> None:
    assert facts(run) == facts(reference)
    assert sorted(lineage(run)) == sorted(lineage(reference))
    assert same_tree(weights(run), weights(reference))


def test_everything_killed_then_resumed_ends_as_if_nothing_had_happened(tmp_path, reference):
    run = tmp_path / "runs" / "a"
    process = start(tmp_path, "search", "--name", "a", *overrides())
    wait_for_scores(run, 6, process)
    kill_all(process)
    done = len(facts(run))
    assert done < 16
    resumed = start(tmp_path, "resume", "runs/a")
    output, errors = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, errors
    assert "intervals done before" in errors
    assert "best schedule: runs/a/best/schedule.yaml" in " ".join(output.split("\n"))
    assert_ended_equal(run, reference)


@pytest.mark.slow  # the same without Ray is a default test
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "runs" / "a"
    process = start(tmp_path, "search", "--name", "a", *overrides(), "--set", "search.epochs=400")
    wait_for_scores(run, 2, process)
    below = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    assert "rolekd resume runs/a" in errors
    assert "Traceback" not in errors
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [below[pid] for pid in below if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
def test_resume_of_a_run_that_is_being_written_is_refused(tmp_path):
    """The lock is the kernel's, so a writer without Ray shows as much."""
    run = tmp_path / "runs" / "a"
    writer = start(tmp_path, "search", "--local", "--name", "a", *overrides(), "--set", "search.epochs=400")
    wait_for_scores(run, 1, writer)
    before = (run / "config.yaml").read_bytes()
    second = start(tmp_path, "resume", "runs/a", "--local", "--epochs", "500")
    _, errors = second.communicate(timeout=200)
    assert second.returncode == 2
    assert f"another process is writing this run (process {writer.pid} on" in errors
    assert (run / "config.yaml").read_bytes() == before
    kill_all(writer)


@pytest.mark.slow
@pytest.mark.parametrize("scores", [1, 4, 5, 9, 15])
def test_killed_at_other_moments(tmp_path, reference, scores):
    run = tmp_path / "runs" / "a"
    process = start(tmp_path, "search", "--name", "a", *overrides())
    wait_for_scores(run, scores, process)
    kill_all(process)
    resumed = start(tmp_path, "resume", "runs/a")
    assert resumed.wait(timeout=400) == 0
    assert_ended_equal(run, reference)
