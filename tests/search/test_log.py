"""The log: on disk before it counts, one writer, torn ends cut off, damage and full disks named."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_searches import init_record, made_rule

from rolekd_ray.errors import RunDirectoryError, StorageError
from rolekd_ray.policy.population import FORMAT
from rolekd_ray.search.log import Log, LogReader, read_log

ROOT = Path(__file__).parents[2]
INIT = {"kind": "init", "format": FORMAT}
WRITER = """
    import sys
    from pathlib import Path
    from rolekd_ray.search.log import Log
    log = Log(Path(sys.argv[1]))
    print("open", flush=True)
    for line in sys.stdin:
        log.append({"kind": "init", "format": "rolekd.log/1", "text": line.strip()})
        print("written", flush=True)
"""


class Writer:
    """Another process that holds the log and appends what it is told."""

    def __init__(self, folder: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(folder)], env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        assert self.process.stdout.readline() == "open\n"

    def append(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        assert self.process.stdout.readline() == "written\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def writer(tmp_path):
    writer = Writer(tmp_path)
    yield writer
    writer.kill()


@contextmanager
def full_disk(bytes_left: int, file: Path):
    """The kernel refuses to let a file grow further, in the middle of a record if need be."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- appending


def test_records_come_back_in_order(tmp_path):
    log = Log(tmp_path / "new" / "folder")
    records = [init_record(made_rule()), *({"kind": "score", "score": i / 3, "text": "ä\n\u2028"} for i in range(5))]
    for number, record in enumerate(records, start=1):
        log.append(record)
        assert log.records() == read_log(tmp_path / "new" / "folder") == json.loads(json.dumps(records[:number]))
    assert log.path.read_bytes().count(b"\n") == 6
    log.close()
    again = Log(tmp_path / "new" / "folder")
    again.append({"kind": "drop"})
    assert len(again.records()) == 7
    again.close()


def test_what_append_returned_from_is_there_for_others_and_outlives_the_writer(tmp_path, writer):
    for number in range(3):
        writer.append(f"record {number}")
        assert [record["text"] for record in read_log(tmp_path)] == [f"record {i}" for i in range(number + 1)]
    writer.kill()
    assert len(read_log(tmp_path)) == 3


def test_every_append_is_brought_to_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    log = Log(tmp_path)
    assert len(synced) == 1, "the folder, which names the new file"
    synced.clear()
    sizes = []
    for _ in range(3):
        log.append(INIT)
        sizes.append(log.path.stat().st_size)
    assert synced == sizes, "synced after the whole record was written"
    log.close()


def test_what_json_cannot_hold_is_not_written(tmp_path):
    log = Log(tmp_path)
    log.append(INIT)
    with pytest.raises(ValueError):
        log.append({"kind": "score", "score": float("nan")})
    assert read_log(tmp_path) == [INIT]
    log.close()


# ---- torn and damaged


@pytest.mark.parametrize("torn", [b"{", b'{"kind": "score", "member": 3', b'{"kind": "drop"}', b"\xc3", b"\x00" * 9])
def test_a_torn_last_line_never_counted(tmp_path, torn):
    log = Log(tmp_path)
    log.append(INIT)
    log.append({"kind": "drop", "member": 1})
    log.close()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + torn)
    assert read_log(tmp_path) == [INIT, {"kind": "drop", "member": 1}], "readers pass over it"
    assert log.path.read_bytes() == whole + torn, "and leave it"
    log = Log(tmp_path)
    assert log.path.read_bytes() == whole, "the writer cuts it off"
    log.append({"kind": "drop", "member": 2})
    log.close()
    assert [record.get("member") for record in read_log(tmp_path)] == [None, 1, 2]


@pytest.mark.parametrize("cut", range(1, 40, 6))
def test_a_file_that_ends_anywhere_can_be_gone_on_with(tmp_path, cut):
    log = Log(tmp_path)
    for record in (INIT, {"kind": "drop", "member": 1}):
        log.append(record)
    log.close()
    os.truncate(log.path, log.path.stat().st_size - cut)
    expected = [INIT] if cut <= len('{"kind": "drop", "member": 1}\n') else []
    assert read_log(tmp_path) == expected
    log = Log(tmp_path)
    log.append(INIT)
    log.close()
    assert read_log(tmp_path) == [*expected, INIT]


@pytest.mark.parametrize("damage", [b'{"kind": "sc', b"", b"\xff\xfe", b"\x00\x00", b"12", b'["kind"]', b"nothing"])
def test_a_damaged_line_inside_is_an_error_with_its_number(tmp_path, damage):
    lines = [json.dumps(INIT).encode(), b'{"kind": "drop", "member": 1}', damage, b'{"kind": "drop", "member": 2}']
    (tmp_path / "log.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(RunDirectoryError, match=re.escape(f"{tmp_path / 'log.jsonl'}: line 3: damaged: ")):
        read_log(tmp_path)


@pytest.mark.parametrize("first", [{"kind": "init", "format": "rolekd.log/2"}, {"kind": "drop", "member": 1}])
def test_a_log_of_another_format_is_refused(tmp_path, first):
    (tmp_path / "log.jsonl").write_text(json.dumps(first) + "\n")
    with pytest.raises(RunDirectoryError, match=r"log\.jsonl: format: got .*; expected 'rolekd\.log/1'"):
        read_log(tmp_path)


def test_a_folder_without_log_is_refused(tmp_path):
    with pytest.raises(RunDirectoryError, match=r"no log\.jsonl; expected a run directory"):
        read_log(tmp_path)


# ---- one writer


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path, writer):
    writer.append("before")
    with pytest.raises(RunDirectoryError) as error:
        Log(tmp_path)
    assert f"{tmp_path}: another process is writing this run (process {writer.process.pid} on " in str(error.value)
    writer.append("the first one goes on")
    assert len(read_log(tmp_path)) == 2, "reading needs no lock, and nothing was cut off"


def test_a_second_writer_in_one_process_is_refused_too(tmp_path):
    log = Log(tmp_path)
    with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} on"):
        Log(tmp_path)
    log.close()
    Log(tmp_path).close()


def test_a_killed_writer_leaves_no_lock(tmp_path, writer):
    writer.append("before")
    writer.kill()
    log = Log(tmp_path)
    log.append({"kind": "drop", "member": 1})
    assert [record["kind"] for record in log.records()] == ["init", "drop"]
    with pytest.raises(RunDirectoryError, match=f"process {os.getpid()} on"):
        Log(tmp_path)
    log.close()


# ---- storage


@pytest.mark.parametrize("bytes_left", [0, 1, 20])
def test_a_full_disk_is_a_storage_error_and_leaves_no_half_record(tmp_path, bytes_left):
    log = Log(tmp_path)
    log.append(INIT)
    whole = log.path.read_bytes()
    with full_disk(bytes_left, log.path):
        for _ in range(2):
            with pytest.raises(StorageError, match=r"log\.jsonl: cannot be written: File too large"):
                log.append({"kind": "score", "text": "x" * 100})
    assert log.path.read_bytes() == whole
    log.append({"kind": "drop", "member": 1})  # room again: nothing of the refused records turns up
    log.close()
    assert read_log(tmp_path) == [INIT, {"kind": "drop", "member": 1}]


def test_closing_on_a_full_disk_raises_nothing_and_frees_the_lock(tmp_path):
    log = Log(tmp_path)
    log.append(INIT)
    with full_disk(3, log.path):
        with pytest.raises(StorageError):
            log.append({"kind": "score", "text": "x" * 100})
        log.close()
    Log(tmp_path).close()
    assert read_log(tmp_path) == [INIT]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written: "):
        Log(tmp_path / "file" / "search")


# ---- following


def test_a_reader_follows_the_writer_and_meets_every_record_once(tmp_path, writer):
    writer.append("0")
    reader = LogReader(tmp_path)
    assert [record["text"] for record in reader.read()] == ["0"]
    assert reader.read() == []
    for number in range(1, 7):
        writer.append(str(number))
        if number % 3 == 0:
            assert [record["text"] for record in reader.read()] == [str(n) for n in range(number - 2, number + 1)]
    assert reader.read() == []


def test_a_reader_waits_until_a_line_is_whole(tmp_path):
    file, reader = tmp_path / "log.jsonl", None
    text = "".join(json.dumps(INIT | {"text": f"ä{number}"}) + "\n" for number in range(3)).encode()
    found = []
    for length in range(0, len(text) + 1, 5):
        file.write_bytes(text[:length])
        reader = reader or LogReader(tmp_path)
        found += reader.read()
        assert len(found) == text[:length].count(b"\n")
    file.write_bytes(text)
    assert [record["text"] for record in found + reader.read()] == ["ä0", "ä1", "ä2"]


def test_a_reader_names_the_line_however_late_it_comes(tmp_path, writer):
    writer.append("0")
    reader = LogReader(tmp_path)
    reader.read()
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b"damage\n")
    for _ in range(2):
        with pytest.raises(RunDirectoryError, match="line 2: damaged"):
            reader.read()
