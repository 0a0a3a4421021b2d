"""A slot as a Ray actor: hardware that lives through a whole search while members come and go."""

import os
from collections.abc import Callable
from typing import Any

from rolekd_ray.policy.population import Job
from rolekd_ray.slots.worker import Worker


class Slot:
    """Owns one worker; the worker is built on first use, so that its errors reach whoever asked for a job."""

    def __init__(self, make_worker: Callable[[], Worker]):
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def train(self, job: Job) -> dict[str, Any]:
        """Train one interval; see `Worker.train`."""
        if self._worker is None:
            self._worker = self._make_worker()
        return self._worker.train(job)

    def pid(self) -> int:
        """Return the process id; also tells that the slot is up."""
        return os.getpid()
