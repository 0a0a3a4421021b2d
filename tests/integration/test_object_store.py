"""Runs in an object store, on a real S3 server: the same promises as in a folder."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_helpers import rolekd
from object_store import BUCKET, checked_access, objects, refusing_server, s3_server
from ray_helpers import BOTH, TINY, facts, lineage, same_tree, tiny_settings, weights

from rolekd_ray import storage
from rolekd_ray.errors import CheckpointError, RunDirectoryError, StorageError
from rolekd_ray.search import lease
from rolekd_ray.search.lease import Lease
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import ObjectLog, has_log, read_log
from rolekd_ray.search.population_search import search_population
from rolekd_ray.storage import ObjectPath, place, relative
from rolekd_ray.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
SMALL = [word for setting in (*TINY, "search.population_size=2", "search.epochs=3") for word in ("--set", setting)]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def prefix(server, request) -> ObjectPath:
    """A prefix of this test's own."""
    return place(f"s3://{BUCKET}/{request.node.name.partition('[')[0]}-{os.urandom(4).hex()}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The search in a folder, never interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    settings = tiny_settings("search.population_size=2", "search.epochs=3")
    search_population(folder, settings, BOTH, local=True)
    return folder


def assert_equal_runs(run: ObjectPath, reference: Path) -> None:
    assert facts(run) == facts(reference) and len(facts(run)) == 6
    assert lineage(run) == lineage(reference) and lineage(reference)
    assert same_tree(weights(run), weights(reference))


# ---- whole searches


def test_a_search_in_a_store_equals_one_in_a_folder_and_can_be_looked_at(prefix, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = rolekd("search", "--local", "--storage", prefix, "--name", "a", *SMALL)
    assert done.code == 0, done.err
    run = prefix / "a"
    assert f"best schedule: {run}/best/schedule.yaml" in " ".join(done.out.split("\n"))
    assert_equal_runs(run, reference)
    kept = objects(run)
    assert [name for name in kept if name.startswith("log/")] == [f"log/{n:08d}.json" for n in range(7)]
    assert {f"history/generation-{n:04d}.parquet" for n in range(3)} <= kept.keys()
    assert {name.split("/")[1] for name in kept if name.startswith("tensorboard/")} == {
        "member-000", "member-001", "population"
    }  # fmt: skip
    assert {name.split("/")[1] for name in kept if name.startswith("states/")} == {"000-0002", "001-0002"}
    assert not [name for name in kept if "lock" in name], "leases are given back"
    assert not list(tmp_path.iterdir()), "nothing lies in a folder"
    assert "6 of 6 intervals" in rolekd("status", run).out
    assert rolekd("export", run).out == (run / "best" / "schedule.yaml").read_text()
    assert "images" in rolekd("evaluate", run / "states" / "000-0002").out
    again = rolekd("search", "--local", "--storage", prefix, "--name", "a", *SMALL)
    assert again.code == 2 and f"{run}: exists; expected a new name" in " ".join(again.err.split("\n"))
    assert objects(run) == kept


def start(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rolekd_ray", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_after(scores: int, run: ObjectPath, process: subprocess.Popen) -> None:
    """SIGKILL a search in the middle of the interval after the n-th score."""
    deadline = time.monotonic() + 200
    while not (run / "log" / f"{scores:08d}.json").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the search does not get on"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_search_killed_and_resumed_ends_as_if_nothing_had_happened(prefix, reference):
    run = prefix / "a"
    kill_after(3, run, start("search", "--local", "--storage", prefix, "--name", "a", *SMALL))
    assert len(facts(run)) < 6
    assert len(list((run / "run.lock").glob("*.json"))) == 1, "a killed writer leaves its claim"
    resumed = rolekd("resume", run, "--local")
    assert resumed.code == 0, resumed.err
    assert_equal_runs(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize("scores", [0, 1, 2, 4, 5])
def test_killed_at_other_moments(prefix, reference, scores):
    run = prefix / "a"
    kill_after(scores, run, start("search", "--local", "--storage", prefix, "--name", "a", *SMALL))
    assert rolekd("resume", run, "--local").code == 0
    assert_equal_runs(run, reference)


@pytest.mark.slow
def test_a_search_on_ray_in_a_store_equals_one_in_a_folder(prefix, reference):
    process = start("search", "--storage", prefix, "--name", "a", *SMALL)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    assert facts(prefix / "a") == facts(reference)
    assert sorted(lineage(prefix / "a")) == sorted(lineage(reference))
    assert same_tree(weights(prefix / "a"), weights(reference))
    assert not [name for name in objects(prefix) if "lock" in name or ".rolekd" in name]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["sequential", "coevolve"])
def test_a_whole_run_in_a_store_equals_one_in_a_folder(prefix, tmp_path, protocol):
    results = []
    for storage_ in (prefix, tmp_path):
        settings = [*SMALL, "--set", f"search.protocol={protocol}", "--set", "search.epochs=2"]
        done = rolekd("run", "--local", "--storage", storage_, "--name", "a", *settings)
        assert done.code == 0, done.err
        rows = json.loads((storage_ / "a" / "results.json").read_text())
        results.append([{key: value for key, value in row.items() if "seconds" not in key} for row in rows])
    assert results[0] == results[1]
    for network in ("student", "student_alone", "student_plain", "teacher"):
        trees = [load_checkpoint(folder / "a" / "best" / network)[0] for folder in (prefix, tmp_path)]
        assert same_tree(*trees)
    longer = rolekd("resume", prefix / "a", "--local", "--epochs", "3")
    assert longer.code == 0, longer.err
    assert not [name for name in objects(prefix / "a") if ".partial" in name]


# ---- bad input


@pytest.mark.parametrize(
    "address, words",
    [
        ("s3://nobody-made-this/x", "no such bucket, got 'nobody-made-this'; expected one that exists"),
        ("s3://runs/x?endpoint_override=http://127.0.0.1:1", "cannot be reached"),
        ("s3://key:secret@runs/x", "got an address with credentials"),
        ("s3://runs/x?endpoint=1", "unknown option 'endpoint'"),
        ("s3://runs/../x", "expected s3://bucket/prefix"),
        ("hdfs://runs/x", "expected a folder or s3:// or gs://"),
    ],
)
def test_storage_that_cannot_be_used_is_refused_before_anything_is_written(
    server, address, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.chdir(tmp_path)
    before = objects(place(f"s3://{BUCKET}"))
    calls = [["search", "--local", "--storage", address], ["status", f"{address}/a"], ["export", f"{address}/a"]]
    for call in calls:
        done = rolekd(*call)
        assert (done.code, done.out) == (2, "") and "Traceback" not in done.err
        assert words in " ".join(done.err.split("\n")), done.err
        assert "secret" not in done.err
    assert objects(place(f"s3://{BUCKET}")) == before and not list(tmp_path.iterdir())


def assert_access_refused(prefix: ObjectPath) -> None:
    done = rolekd("search", "--local", "--storage", prefix)
    assert done.code == 2 and "Traceback" not in done.err
    assert "access refused" in done.err and "AWS_ACCESS_KEY_ID" in done.err


def test_wrong_credentials_are_named(server, prefix):
    with checked_access(server):
        assert_access_refused(prefix)
    assert not objects(prefix)


def test_missing_credentials_are_named(server, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with refusing_server() as url:
        assert_access_refused(place(f"s3://{BUCKET}/x?endpoint_override={url}"))


def test_a_run_that_is_not_there_is_refused(prefix):
    assert "not a run directory, lacks config.yaml" in rolekd("resume", prefix / "a", "--local").err
    assert "no such checkpoint" in rolekd("evaluate", prefix / "a").err


# ---- one writer


@pytest.fixture
def fast(monkeypatch):
    """Leases that end and beat fifty times as fast."""
    for name, seconds in (("LEASE_SECONDS", 0.6), ("LATEST_SECONDS", 0.4), ("BEAT_SECONDS", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
    monkeypatch.setattr(lease, "_dead", set())


def foreign(monkeypatch, machine: str = "another") -> None:
    """From now on this process claims to be on another machine."""
    monkeypatch.setattr(lease, "owner", lambda: {"owner": f"process 7 on {machine}", "machine": machine, "pid": 7})


def test_a_second_writer_is_refused_and_told_who_writes(prefix, fast):
    log = ObjectLog(prefix)
    with pytest.raises(RunDirectoryError, match=rf"another process is writing this run \(process {os.getpid()} on"):
        ObjectLog(prefix)
    log.append({"kind": "init"})
    log.close()
    ObjectLog(prefix).close()
    assert [name for name in objects(prefix)] == ["log/00000000.json"]


def test_a_living_writer_on_another_machine_is_told_by_its_heartbeat(prefix, fast, monkeypatch):
    held = Lease(prefix / "a.lock")
    foreign(monkeypatch)
    with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} on"):
        Lease(prefix / "a.lock")
    held.check()
    held.close()


def test_a_dead_writer_on_another_machine_loses_the_run_for_good(prefix, fast, monkeypatch):
    frozen = Lease(prefix / "a.lock")
    frozen._ended.set()  # its heart stops
    foreign(monkeypatch)
    started = time.monotonic()
    with Lease(prefix / "a.lock") as heir:
        assert time.monotonic() - started > 0.5
        heir.check()
        frozen._beat()  # it wakes up
        with pytest.raises(StorageError, match="no longer holds the run"):
            frozen.check()
        heir.check()
    with Lease(prefix / "a.lock") as another:  # nobody waits for the lost one again
        another.check()


def test_a_writer_whose_heartbeat_does_not_get_through_stops_by_itself(prefix, fast, monkeypatch):
    log = ObjectLog(prefix)
    monkeypatch.setattr(Lease, "_beat", lambda self: None)
    time.sleep(0.6)
    with pytest.raises(StorageError, match="no longer holds the run"):
        log.append({"kind": "init"})
    log.close()
    assert not has_log(prefix)


@pytest.mark.slow
def test_resume_of_a_run_that_is_being_written_is_refused(prefix):
    run = prefix / "a"
    writer = start("search", "--local", "--storage", prefix, "--name", "a", *SMALL, "--set", "search.epochs=400")
    deadline = time.monotonic() + 200
    while not (run / "log" / f"{1:08d}.json").is_file():
        assert writer.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    before = (run / "config.yaml").read_bytes()
    second = rolekd("resume", run, "--local", "--epochs", 500)
    assert second.code == 2 and f"another process is writing this run (process {writer.pid} on" in second.err
    assert writer.poll() is None and (run / "config.yaml").read_bytes() == before
    writer.kill()
    writer.communicate()


# ---- the log and states


def test_after_a_write_that_failed_nothing_is_added(prefix, monkeypatch):
    log = ObjectLog(prefix)
    log.append({"kind": "init", "format": "rolekd.log/1"})

    def lost(self, data):
        raise StorageError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "write_bytes", lost)
        with pytest.raises(StorageError, match="no answer"):
            log.append({"kind": "drop", "member": 1})
    with pytest.raises(StorageError, match="the last record may be written or not"):
        log.append({"kind": "drop", "member": 2})
    log.close()
    assert len(read_log(prefix)) == 1


def test_a_log_that_lacks_a_record_is_damaged(prefix):
    for number in (0, 1, 3):
        record = {"kind": "init", "format": "rolekd.log/1"} if number == 0 else {"kind": "drop", "member": 1}
        (prefix / "log" / f"{number:08d}.json").write_bytes(json.dumps(record).encode())
    for opening in (read_log, ObjectLog):
        with pytest.raises(RunDirectoryError, match=r"got 00000003\.json; expected 00000002\.json, which is missing"):
            opening(prefix)
    (prefix / "log" / "00000002.json").write_bytes(b'{"kind": "sc')
    with pytest.raises(RunDirectoryError, match="line 3: damaged"):
        read_log(prefix)


def test_states_that_nobody_needs_are_collected(prefix):
    from made_searches import made_rule, play

    ledger = Ledger(prefix, made_rule(population_size=4))
    for state in ("000-0000", "001-0000", "000-0001", "notes"):
        (prefix / "states" / state / "checkpoint.json").write_bytes(b"{}")
    play(ledger, 8)
    ledger.collect()
    ledger.close()
    assert {name.split("/")[1] for name in objects(prefix) if name.startswith("states/")} == {"000-0001", "notes"}


def test_a_checkpoint_is_there_once_its_description_is(prefix, monkeypatch):
    import torch

    tree = {"weights": torch.arange(6.0).reshape(2, 3), "epoch": 3}
    save_checkpoint(prefix / "net", tree, {"first": True})
    before, write = objects(prefix), ObjectPath.write_bytes

    def killed(self, data):
        if self.name == "checkpoint.json":
            raise KeyboardInterrupt
        write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectPath, "write_bytes", killed)
        for folder in ("net", "new"):
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(prefix / folder, tree | {"epoch": 4}, {})
    assert load_checkpoint(prefix / "net")[0]["epoch"] == 3 and not has_checkpoint(prefix / "new")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json is missing"):
        load_checkpoint(prefix / "new")
    save_checkpoint(prefix / "net", tree | {"epoch": 5}, {})
    loaded, _ = load_checkpoint(prefix / "net")
    assert loaded["epoch"] == 5 and torch.equal(loaded["weights"], tree["weights"])
    (tensors,) = [name for name in before if name.startswith("net/tensors")]
    (prefix / tensors).write_bytes(b"")
    assert load_checkpoint(prefix / "net")[0]["epoch"] == 5, "the replaced one is not read"


# ---- names


def test_places():
    run = place("s3://bucket/a/b/?region=eu-west-1")
    assert str(run / "." / "c.json") == "s3://bucket/a/b/c.json?region=eu-west-1"
    assert (run.name, run.parent, run.bucket) == ("b", place("s3://bucket/a?region=eu-west-1"), run.parent.parent)
    assert str(run / "/etc").startswith("s3://bucket/a/b/etc"), "an absolute name stays below"
    assert relative(run / "c", run) == "c" and relative(Path("/a/b"), Path("/a")) == "b"
    assert relative(place("s3://other/c"), run) == "s3://other/c"
    assert place("runs/a") == Path("runs/a") and place("file:///runs/a%20b") == Path("/runs/a b")
