"""The log: the truth of a search. One JSON record per line, on disk before it counts; one writer at a time.

In an object store, which knows no append, each record is an object of its own: `log/00000000.json` and so on. A record
counts when its object exists.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rolekd_ray.errors import RunDirectoryError, StorageError
from rolekd_ray.files import sync_folder, writing
from rolekd_ray.policy.jobs import Perturbation
from rolekd_ray.policy.population import FORMAT, Population, Rule
from rolekd_ray.search.lock import take_lock
from rolekd_ray.storage import ObjectPath, Place

LOG = "log.jsonl"
LOG_OBJECTS = "log"
LOCK = "log.lock"
READERS = 16
"""Objects are read so many at a time."""


class Log:
    """The open log of a search, for its one writer.

    A last line torn by a crash never counted and is cut off before the first append.

    Raises:
        RunDirectoryError: another process is writing this search.
    """

    def __init__(self, folder: Path):
        self._lock = take_lock(folder / LOCK)
        self.path = folder / LOG
        # No buffer: what a full disk refused must not be written later, when the record was given up
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - open until close
        self._size = sum(len(line) for line in _whole_lines(self.path))
        os.truncate(self.path, self._size)
        sync_folder(folder)

    def records(self) -> list[dict[str, Any]]:
        """Return all records so far."""
        return read_log(self.path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            StorageError: it could not be written; nothing of it is left.
        """
        line = memoryview(_line(record))
        with writing(self.path):
            try:
                written = 0
                while written < len(line):
                    written += self._file.write(line[written:])
                os.fsync(self._file.fileno())
            except OSError:
                os.truncate(self.path, self._size)  # the next record must not stand behind a torn one
                raise
        self._size += len(line)

    def close(self) -> None:
        """Let another process write."""
        self._file.close()
        self._lock.close()


class ObjectLog:
    """The open log of a search in an object store; see `Log`."""

    def __init__(self, folder: ObjectPath):
        self.path = folder / LOG_OBJECTS
        self._lease = take_lock(folder / LOCK)
        try:
            self._count: int | None = len(_numbered(self.path))
        except BaseException:
            self._lease.close()
            raise

    def records(self) -> list[dict[str, Any]]:
        """Return all records so far."""
        return read_log(self.path.parent) if self._count != 0 else []

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is in the store when this returns.

        Raises:
            StorageError: it could not be written, or another process writes by now. Nothing can be added after that:
                a store that did not answer may have taken the record all the same, and who opens the log anew sees.
        """
        if self._count is None:
            raise StorageError(f"{self.path}: the last record may be written or not; expected a log opened anew")
        count, self._count = self._count, None
        self._lease.check()
        (self.path / f"{count:08d}.json").write_bytes(_line(record))
        self._count = count + 1

    def close(self) -> None:
        """Let another process write."""
        self._lease.close()


def open_log(folder: Place) -> Log | ObjectLog:
    """Open a search's log for writing, making it if there is none."""
    return ObjectLog(folder) if isinstance(folder, ObjectPath) else Log(folder)


def has_log(folder: Place) -> bool:
    """Whether a search has begun there."""
    if isinstance(folder, ObjectPath):
        return (folder / LOG_OBJECTS / f"{0:08d}.json").is_file()
    return (folder / LOG).is_file()


class LogReader:
    """Reads a log while another process may be writing it; a last line that is not whole does not count yet.

    Raises:
        RunDirectoryError: there is no log.
    """

    def __init__(self, folder: Place):
        self.path = folder / (LOG_OBJECTS if isinstance(folder, ObjectPath) else LOG)
        self._offset = self._lines = 0
        if not has_log(folder):
            raise RunDirectoryError(f"{folder}: no {self.path.name}; expected a run directory")

    def read(self) -> list[dict[str, Any]]:
        """Return the records since the last call.

        Raises:
            RunDirectoryError: a line is damaged, or the log is of another format.
        """
        records = []
        for line in self._new_lines():
            try:
                record = _record(line)
            except ValueError as error:
                raise RunDirectoryError(f"{self.path}: line {self._lines + 1}: damaged: {error}") from error
            if self._lines == 0 and record.get("format") != FORMAT:
                raise RunDirectoryError(f"{self.path}: format: got {record.get('format')!r}; expected {FORMAT!r}")
            self._offset, self._lines = self._offset + len(line), self._lines + 1
            records.append(record)
        return records

    def _new_lines(self) -> Iterator[bytes]:
        if not isinstance(self.path, ObjectPath):
            return _whole_lines(self.path, self._offset)
        new = _numbered(self.path)[self._lines :]
        with ThreadPoolExecutor(READERS) as pool:
            return iter(list(pool.map(ObjectPath.read_bytes, new)))


def read_log(folder: Place) -> list[dict[str, Any]]:
    """Return all records of a search's log; see `LogReader`."""
    return LogReader(folder).read()


def begin(records: list[dict[str, Any]], folder: Place) -> Population:
    """Return the population as a log's first record describes it.

    Raises:
        RunDirectoryError: the record does not describe one.
    """
    try:
        return Population(Rule.from_dict(records[0]["rule"]))
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise RunDirectoryError(f"{folder}: log: rule: damaged: {type(error).__name__}: {error}") from error


def fold(population: Population, record: Mapping[str, Any], folder: Place) -> list[Perturbation]:
    """Tell a population a record of a log that anyone may have written.

    Raises:
        RunDirectoryError: it does not fit what came before: no such member or generation, no number,
            no policies of the space.
    """
    try:
        if record["kind"] == "score":
            _ = population.jobs[record["member"], record["generation"]]  # names of states come from here alone
        return population.tell(record)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        why = f"; {error}" if type(error) in (ValueError, AssertionError) else ""
        raise RunDirectoryError(f"{folder}: log: a record does not fit those before it: got {record!r}{why}") from error


def read_population(folder: Place) -> Population | None:
    """Return the population that a search's log describes; None if nothing is in it yet."""
    records = read_log(folder)
    if not records:
        return None
    population = begin(records, folder)
    for record in records[1:]:
        fold(population, record, folder)
    return population


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"got {record!r}; expected a record")
    return record


def _numbered(folder: ObjectPath) -> list[ObjectPath]:
    """Return the records' objects in order.

    Raises:
        RunDirectoryError: one is missing in between.
    """
    found = [path for path in folder.iterdir() if re.fullmatch(r"\d{8}\.json", path.name)]
    for number, path in enumerate(found):
        if path.stem != f"{number:08d}":
            raise RunDirectoryError(f"{folder}: damaged: got {path.name}; expected {number:08d}.json, which is missing")
    return found


def _whole_lines(path: Path, offset: int = 0) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                yield line
