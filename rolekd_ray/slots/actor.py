"""A slot as a Ray actor: hardware that lives through a whole search while members come and go."""

import os
from collections.abc import Callable
from typing import Any

import ray

from rolekd_ray import progress
from rolekd_ray.policy.population import Job
from rolekd_ray.slots.interface import Worker

WATCH = "watch"
"""The actor's concurrency group, of one thread, that answers while the other thread trains."""


class Slot:
    """Owns one worker and hands it one interval at a time."""

    def __init__(self, make_worker: Callable[[], Worker]):
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def prepare(self) -> int:
        """Build the worker; return the process id. Not done on creation, so that its errors reach who asks."""
        if self._worker is None:
            self._worker = self._make_worker()
        return os.getpid()

    def train(self, job: Job) -> dict[str, Any]:
        """Train one interval; see `Worker.train`."""
        self.prepare()
        assert self._worker is not None
        return self._worker.train(job)

    @ray.method(concurrency_group=WATCH)
    def progress(self) -> int:
        """Return a number that changes as long as the worker gets on; see `rolekd_ray.progress`."""
        return progress.done()
