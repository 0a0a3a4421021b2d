"""One writer at a time."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO

from rolekd_ray.errors import RunDirectoryError
from rolekd_ray.files import writing


def take_lock(file: Path) -> IO[str]:
    """Take a folder's lock; it is held until the returned file is closed or the process dies, however it dies.

    Raises:
        RunDirectoryError: another process holds it; says which.
        StorageError: the folder cannot be written, or its filesystem has no locks.
    """
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115 - held on purpose
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            writer = lock.read().strip() or "unknown"
            lock.close()
            raise RunDirectoryError(
                f"{file.parent}: another process is writing this run ({writer}); expected none. "
                "Wait for it, or stop it."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
    return lock
