"""The log: the truth of a search. One JSON record per line, on disk before it counts; one writer at a time."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rolekd_ray.errors import RunDirectoryError, StorageError
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
        self._file = open(self.path, "ab")  # noqa: SIM115 - open until close
        whole = sum(len(line) for line in _whole_lines(self.path))
        os.truncate(self.path, whole)

    def records(self) -> list[dict[str, Any]]:
        """Return all records so far."""
        return read_log(self.path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on disk when this returns.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StorageError(f"{self.path}: cannot append: {error.strerror}") from error

    def close(self) -> None:
        """Let another process write."""
        self._file.close()
        self._lock.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a search's log; a torn last line does not count.

    Raises:
        RunDirectoryError: there is no log, or a line inside is damaged.
    """
    path = Path(folder) / LOG
    if not path.is_file():
        raise RunDirectoryError(f"{folder}: no {LOG}; expected a run directory")
    records = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise RunDirectoryError(f"{path}: line {number}: damaged: {error}") from error
    return records


def _whole_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
