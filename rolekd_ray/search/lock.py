"""One writer at a time: the kernel's lock in a folder, a lease in an object store."""

import fcntl
import os
import socket
from typing import Any

from rolekd_ray.errors import RunDirectoryError
from rolekd_ray.files import writing
from rolekd_ray.search.lease import Lease
from rolekd_ray.storage import ObjectPath, Place


def take_lock(file: Place) -> Any:
    """Take a folder's lock; it is held until what is returned is closed or the process dies, however it dies.

    Raises:
        RunDirectoryError: another process holds it; says which.
        StorageError: the folder cannot be written, or its filesystem has no locks.
    """
    if isinstance(file, ObjectPath):
        return Lease(file)
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
