"""The log: the truth of a search. One JSON record per line, on disk before it counts; one writer at a time."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rolekd_ray.errors import RunDirectoryError
from rolekd_ray.files import sync_folder, writing
from rolekd_ray.policy.population import FORMAT
from rolekd_ray.search.lock import take_lock

LOG = "log.jsonl"
LOCK = "log.lock"


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
        line = memoryview(json.dumps(record, allow_nan=False).encode() + b"\n")
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


class LogReader:
    """Reads a log while another process may be writing it; a last line that is not whole does not count yet.

    Raises:
        RunDirectoryError: there is no log.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / LOG
        self._offset = self._lines = 0
        if not self.path.is_file():
            raise RunDirectoryError(f"{folder}: no {LOG}; expected a run directory")

    def read(self) -> list[dict[str, Any]]:
        """Return the records since the last call.

        Raises:
            RunDirectoryError: a line is damaged, or the log is of another format.
        """
        records = []
        for line in _whole_lines(self.path, self._offset):
            try:
                record = _record(line)
            except ValueError as error:
                raise RunDirectoryError(f"{self.path}: line {self._lines + 1}: damaged: {error}") from error
            if self._lines == 0 and record.get("format") != FORMAT:
                raise RunDirectoryError(f"{self.path}: format: got {record.get('format')!r}; expected {FORMAT!r}")
            self._offset, self._lines = self._offset + len(line), self._lines + 1
            records.append(record)
        return records


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return all records of a search's log; see `LogReader`."""
    return LogReader(folder).read()


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"got {record!r}; expected a record")
    return record


def _whole_lines(path: Path, offset: int = 0) -> Iterator[bytes]:
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                yield line
