"""One writer at a time in an object store, which has no locks: a lease with owner and heartbeat.

Whoever wants the lease puts a claim of its own (`<lock>/<id>.json`) and then looks for others' claims. As a store shows
what was written to everyone at once, of two who come together the later one sees the earlier: never two get it, at
worst none. A claim is a living one's as long as its heartbeat goes on. It is passed over once its process is known to
be dead (it was on this machine), or when it has shown no heartbeat for `LEASE_SECONDS`; then it is marked as lost, and
its owner, should it wake up after all, sees the mark before it writes again.

What this cannot rule out, for pyarrow offers no conditional writes: an owner that freezes for more than
`LEASE_SECONDS` just between that look and the write behind it writes one object late.
"""

import json
import logging
import os
import socket
import time
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from rolekd_ray.errors import RunDirectoryError, StorageError
from rolekd_ray.storage import ObjectPath

LEASE_SECONDS, LATEST_SECONDS, BEAT_SECONDS = 30.0, 20.0, 5.0  # taken over; no longer sure; told
log = logging.getLogger(__name__)
_dead: set[str] = set()  # processes that this one found dead: they may have held several leases


class Lease:
    """Holds the lease from its making to `close`, or to the death of the process.

    Raises:
        RunDirectoryError: another process holds it; says which. To tell a dead one that was on another machine from a
            living one takes up to `LEASE_SECONDS`.
        StorageError: the store cannot be written.
    """

    def __init__(self, folder: ObjectPath):
        self.folder, self._id, self._owner = folder, uuid4().hex, owner()
        self._claim, self._lost = folder / f"{self._id}.json", folder / f"{self._id}.lost"
        self._ended = Event()
        self._beats = 0
        self._beat()
        self._thread = Thread(target=self._keep_beating, name=f"lease {folder.name}", daemon=True)
        self._thread.start()
        try:
            self._refuse_others()
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Make sure that this process is still the one that may write.

        Raises:
            StorageError: it is not: its heartbeat did not reach the store in time, and another may have taken over.
        """
        late = time.monotonic() - self._last
        if late > LATEST_SECONDS or _read(self._lost) is not None:
            raise StorageError(
                f"{self.folder}: this process no longer holds the run: got a heartbeat {late:.0f} s ago; expected one "
                f"every {BEAT_SECONDS:g} s. Another process may have gone on with it"
            )

    def close(self) -> None:
        """Let another process write; of a store that does not answer the claim ends by itself."""
        self._ended.set()
        self._thread.join()
        try:
            self._claim.unlink(missing_ok=True)
        except StorageError as error:  # must not hide why the search ended
            log.warning("%s: the claim could not be given back: %s", self.folder, error)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _beat(self) -> None:
        sent = time.monotonic()  # what counts is when it was sent, not when the answer came
        self._claim.write_bytes(json.dumps(self._owner | {"beats": self._beats}).encode())
        self._last, self._beats = sent, self._beats + 1

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except StorageError as error:
                log.warning("%s: heartbeat failed: %s", self.folder, error)

    def _refuse_others(self) -> None:
        """Return when all other claims are known to be dead ones'; raise when one shows life."""
        deadline = time.monotonic() + LEASE_SECONDS
        others = self._others()
        while others:
            for claim, content in others.items():
                if _is_alive(content) or _read(claim) not in (content, None):
                    raise RunDirectoryError(
                        f"{self.folder.parent}: another process is writing this run ({content.get('owner')}); "
                        "expected none. Wait for it, or stop it."
                    )
            if time.monotonic() > deadline:
                for claim, content in others.items():
                    claim.with_name(f"{claim.stem}.lost").write_bytes(b"")
                    _dead.add(_identity(content))
                return
            log.warning("%s: waiting for a sign of life of %s", self.folder, [o.get("owner") for o in others.values()])
            self._ended.wait(BEAT_SECONDS)
            others = {claim: content for claim, content in others.items() if claim.exists()}

    def _others(self) -> dict[ObjectPath, dict[str, Any]]:
        """Return claims that may be living ones'; delete those that are known not to be."""
        found: dict[ObjectPath, dict[str, Any]] = {}
        names = {path.name for path in self.folder.iterdir()}
        for name in names:
            stem, _, suffix = name.partition(".")
            if suffix != "json" or stem == self._id or f"{stem}.lost" in names:
                continue
            content = _read(self.folder / name)
            if content is not None and _is_dead(content):
                _dead.add(_identity(content))
                (self.folder / name).unlink(missing_ok=True)
            elif content is not None:
                found[self.folder / name] = content
        return found


@cache
def owner() -> dict[str, Any]:
    """Return what others must know of this process to tell whether it lives."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux: nobody can look, heartbeats must do
        machine = None
    name = f"process {os.getpid()} on {socket.gethostname()}"
    return {"owner": name, "machine": machine, "pid": os.getpid(), "started": _started(os.getpid())}


def _started(pid: object) -> str | None:
    """Return when a process of this machine started: numbers of processes are used again."""
    try:
        return Path(f"/proc/{int(str(pid))}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return None


def _is_here(content: dict[str, Any]) -> bool:
    return owner()["machine"] is not None and content.get("machine") == owner()["machine"]


def _is_dead(content: dict[str, Any]) -> bool:
    gone = _is_here(content) and _started(content.get("pid")) != content.get("started")
    return gone or _identity(content) in _dead


def _is_alive(content: dict[str, Any]) -> bool:
    return _is_here(content) and _started(content.get("pid")) == content.get("started")


def _identity(content: dict[str, Any]) -> str:
    return json.dumps([content.get(key) for key in ("owner", "machine", "pid", "started")])


def _read(claim: ObjectPath) -> dict[str, Any] | None:
    """Return a claim or a mark; None if there is none, which takes one request. What is no claim has no owner."""
    try:
        found = json.loads(claim.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
