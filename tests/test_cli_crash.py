"""Runs that are killed, or whose disk is full, end as if nothing had happened once they are resumed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest
import torch
from cli_helpers import TINY, assert_refused, environment, options, rolekd, rolekd_process, tree

from rolekd_ray.search.log import LOG, read_log
from rolekd_ray.search.run_directory import RESULTS
from rolekd_ray.training.checkpoint import TENSORS

torch.set_num_threads(1)

LONGER = TINY | {"search.epochs": 3}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def uninterrupted(tmp_path_factory, protocol: str) -> Path:
    storage = tmp_path_factory.mktemp(protocol)
    settings = options(LONGER | {"search.protocol": protocol})
    done = rolekd("run", "--local", "--storage", storage, "--name", "a", *settings)
    assert done.code == 0, done.err
    return storage / "a"


@pytest.fixture(scope="module")
def sequential(tmp_path_factory) -> Path:
    return uninterrupted(tmp_path_factory, "sequential")


@pytest.fixture(scope="module")
def coevolved(tmp_path_factory) -> Path:
    return uninterrupted(tmp_path_factory, "coevolve")


def facts(run: Path) -> dict[str, object]:
    """All that a run came to: results without clocks, schedules, lineages, and every network to the last bit."""
    networks = {file.parent.name: file.read_bytes() for file in sorted((run / "best").glob(f"*/{TENSORS}"))}
    texts = {
        str(file.relative_to(run)): file.read_text()
        for name in ("schedule.yaml", "lineage.jsonl")
        for file in sorted(run.rglob(name))
    }
    results = run / RESULTS
    rows = json.loads(results.read_text()) if results.exists() else []
    return {"results": [{**row, "seconds": None} for row in rows], "texts": texts, "networks": networks}


def assert_ended_as(run: Path, reference: Path) -> None:
    found, expected = facts(run), facts(reference)
    assert found["results"] == expected["results"]
    assert found["texts"] == expected["texts"]
    assert found["networks"] == expected["networks"]


# ---- killed


def scores(folder: Path) -> int:
    return sum(record["kind"] == "score" for record in read_log(folder)) if (folder / LOG).exists() else 0


def trains(name: str) -> Callable[[Path], bool]:
    return lambda run: (run / "best" / f"{name}.partial").exists()


MOMENTS = [
    pytest.param("sequential", lambda run: scores(run) >= 3, id="student's search"),
    pytest.param("sequential", lambda run: scores(run / "teacher") >= 1, id="teacher's search", marks=pytest.mark.slow),
    pytest.param("sequential", trains("teacher"), id="teacher's training", marks=pytest.mark.slow),
    pytest.param("sequential", trains("student_alone"), id="first student", marks=pytest.mark.slow),
    pytest.param("sequential", trains("student"), id="last student", marks=pytest.mark.slow),
    pytest.param("coevolve", lambda run: scores(run) >= 2, id="both roles' search", marks=pytest.mark.slow),
    pytest.param("coevolve", trains("teacher"), id="their teacher's training", marks=pytest.mark.slow),
    pytest.param("coevolve", trains("student_plain"), id="their second student", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("protocol, reached", MOMENTS)
def test_a_killed_run_ends_as_one_that_was_not(protocol, reached, request):
    reference = request.getfixturevalue({"sequential": "sequential", "coevolve": "coevolved"}[protocol])
    run = Path("runs/a")
    settings = options(LONGER | {"search.protocol": protocol})
    words = [sys.executable, "-m", "rolekd_ray", "run", "--local", "--name", "a", *settings]
    with open("output.txt", "w") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + 300
        while not reached(run):
            assert process.poll() is None and time.monotonic() < deadline, Path("output.txt").read_text()
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it had ended"
    (run / "best" / ".student.0123abcd").mkdir(parents=True)  # as a kill in the middle of a save leaves it
    (run / ".config.yaml.0123abcd").write_text("seed:")
    assert not (run / RESULTS).exists()
    done = scores(run), scores(run / "teacher")
    assert rolekd("status runs/a").code == 0, "a killed run can be looked at"
    resumed = rolekd("resume runs/a --local")
    assert resumed.code == 0, resumed.err
    assert_ended_as(run, reference)
    assert (scores(run), scores(run / "teacher")) >= done
    assert not list(run.rglob("*.partial")) and not list(run.rglob(".*"))


def interrupt_when(reached: Callable[[], bool]) -> None:
    """Send a real SIGINT, as a terminal does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored

    def wait() -> None:
        while not reached():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    Thread(target=wait, daemon=True).start()


def test_ctrl_c_says_how_to_go_on():
    run = Path("runs/a")
    interrupt_when(lambda: scores(run / "teacher") >= 1)
    result = rolekd("search", "--local", "--name", "a", *options(TINY | {"search.epochs": 400}))
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err
    assert "rolekd resume runs/a --local" in result.err.splitlines()
    assert scores(run / "teacher") >= 1


def test_ctrl_c_in_a_training_keeps_what_was_saved():
    words = ("train", "student", *options({k: v for k, v in TINY.items() if "search" not in k}))
    words += ("--set", "search.perturbation_interval_epochs=1", "--epochs", 300, "-o")
    interrupt_when(lambda: any(Path("net.partial").glob("[0-9]*/checkpoint.json")))
    result = rolekd(*words, "net")
    assert (result.code, result.out) == (130, "")
    assert "the same command again" in result.err and "Traceback" not in result.err
    assert list(Path().iterdir()) == [Path("net.partial")]


# ---- full disk


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let every write beyond `size` bytes of a file fail, as on a full disk; only for this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(size: int, *words: object):
    with no_file_above(size):
        return rolekd(*words)


def test_a_disk_that_is_full_from_the_start_leaves_no_run():
    assert_refused(
        lambda: full(100, "search", "--local", "--name", "a", "--storage", ".", *options(TINY)),
        "config.yaml: cannot be written",
        "File too large",
    )


def test_a_search_whose_disk_fills_up_goes_on_when_there_is_room(sequential):
    result = full(500_000, "run", "--local", "--name", "a", *options(LONGER))
    assert (result.code, result.out) == (2, ""), result
    assert "Traceback" not in result.err
    assert "File too large" in result.err and "cannot" in result.err
    assert "go on: rolekd resume runs/a --local" in result.err
    assert not [path for path in tree(Path("runs")) if "/." in path], "half-written"
    resumed = rolekd("resume runs/a --local")
    assert resumed.code == 0, resumed.err
    assert_ended_as(Path("runs/a"), sequential)


def test_a_final_training_whose_disk_is_full_leaves_what_was_complete(sequential, folder):
    """A real process with the limit, as a user's quota would set it."""
    shutil.copytree(sequential, "runs/a")
    shutil.rmtree("runs/a/best/student")
    before = tree(Path("runs/a/best"))
    result = rolekd_process(
        "resume",
        "runs/a",
        "--local",
        cwd=folder,
        env=environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert (result.code, result.out) == (2, ""), result
    assert "best/student" in result.err and "cannot write the checkpoint" in result.err
    assert "File too large" in result.err and "Traceback" not in result.err
    assert "go on: rolekd resume runs/a --local" in result.err
    after = tree(Path("runs/a/best"))
    assert {path: digest for path, digest in after.items() if path != "student.partial"} == before
    assert rolekd("resume runs/a --local").code == 0
    assert_ended_as(Path("runs/a"), sequential)


def test_a_training_whose_disk_is_full_leaves_nothing():
    words = ("train", "student", "-o", "net", *options({k: v for k, v in TINY.items() if "search" not in k}))
    assert_refused(lambda: full(200_000, *words, "--epochs", 1), "net: cannot write the checkpoint", "File too large")
    assert rolekd(*words, "--epochs", 1).code == 0
    before = tree(Path())
    assert_refused(lambda: full(200_000, *words, "--epochs", 2), "net: exists")
    assert tree(Path()) == before
