"""Final trainings on Ray: side by side, each by one worker or by a worker group."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rolekd_ray.config import SlotSettings
from rolekd_ray.errors import RolekdError, WorkersLostError
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.dispatcher import MOST_DEATHS
from rolekd_ray.search.slot_pool import SLOT_START_SECONDS, SlotPool
from rolekd_ray.slots.final_worker import FinalWorker
from rolekd_ray.storage import Place
from rolekd_ray.training.final import FinalTraining, train_final

RETRY_SECONDS = 1.0
RETRIES = 3
"""So often a training is done again that failed by an error of its own, or whose process died."""


def train_on_ray(trainings: Sequence[FinalTraining], slots: SlotSettings, *, storage: Place) -> list[dict[str, Any]]:
    """Train networks to the end, as many at once as fit; return their checkpoints' metrics. Ray must be initialised.

    A process, group or node that dies costs what was trained since the last saved epoch.

    Args:
        trainings: what to train.
        slots: what one of them takes.
        storage: folder that all nodes see, for Ray Train's own files.

    Raises:
        RolekdError: whatever a training refuses, or processes died too often over one of them.
    """
    if slots.most_workers == 1:
        return _by_tasks(trainings, slots)
    metrics = [training.finished(training.plan()) for training in trainings]  # starting a group takes 10 to 20 s
    missing = [index for index, found in enumerate(metrics) if found is None]
    if missing:
        done = _by_groups([trainings[index] for index in missing], slots, storage)
        for index, found in zip(missing, done):
            metrics[index] = found
    return [found for found in metrics if found is not None]


def _by_tasks(trainings: Sequence[FinalTraining], slots: SlotSettings) -> list[dict[str, Any]]:
    each = slots.resources_per_worker
    task = ray.remote(num_cpus=each.cpus, num_gpus=each.gpus, max_retries=RETRIES)(train_final)
    try:
        return ray.get([task.remote(training) for training in trainings])
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RolekdError) else error) from None


def _by_groups(trainings: Sequence[FinalTraining], slots: SlotSettings, storage: Place) -> list[dict[str, Any]]:
    pool = SlotPool(slots, FinalWorker, storage=storage)
    pool.grow(min(len(trainings), slot_count(slots, len(trainings))))
    try:
        pool.prepare()
        return _Shift(trainings, list(pool.slots.values())).work()
    finally:
        pool.stop()


class _Shift:
    """Hands trainings to groups, one at a time to each, until all are done."""

    def __init__(self, trainings: Sequence[FinalTraining], groups: list[Any]):
        self.trainings, self.free = trainings, groups
        self.waiting = deque(range(len(trainings)))
        self.metrics: dict[int, dict[str, Any]] = {}
        # What a group is asked -> the group, and which training it is; None: to come back
        self.asked: dict[Any, tuple[Any, int | None]] = {}
        self.deaths: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.absences: Counter[Any] = Counter()

    def work(self) -> list[dict[str, Any]]:
        """Return the metrics in the order of the trainings."""
        while len(self.metrics) < len(self.trainings):
            while self.free and self.waiting:
                group, index = self.free.pop(), self.waiting.popleft()
                self.asked[group.train.remote(self.trainings[index])] = group, index
            [done], _ = ray.wait(list(self.asked))
            group, asked = self.asked.pop(done)
            try:
                answer = ray.get(done)
            except RayError as error:
                self._judge(error, asked)
                self._wait_for(group, error)
            else:
                self.absences[group] = 0
                self.free.append(group)
                if asked is not None:
                    self.metrics[asked] = answer
        return [self.metrics[index] for index in range(len(self.trainings))]

    def _judge(self, error: RayError, index: int | None) -> None:
        """Put a training back in line whose group was lost; raise what is no loss."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, RolekdError):  # bad data, a full disk, a loss that is not finite: it would come again
            raise cause from None
        if index is None:
            return
        self.waiting.appendleft(index)
        if isinstance(cause, RayError | WorkersLostError):
            self.deaths[index] += 1
        else:
            # Of a worker that was killed, the others may be first to tell: they see no more than a closed connection
            self.failures[index] += 1
        if self.failures[index] > RETRIES:
            raise error
        if self.deaths[index] > MOST_DEATHS:
            where = self.trainings[index].folder
            raise RolekdError(
                f"{where}: its training ended with the death of its group {self.deaths[index]} times: {cause}"
            )

    def _wait_for(self, group: Any, error: RayError) -> None:
        """Have a lost group tell when it is back; the others work meanwhile."""
        self.absences[group] += 1
        if self.absences[group] > SLOT_START_SECONDS / RETRY_SECONDS:
            raise RolekdError(f"slots: a worker group was lost and did not come back: {error}") from error
        time.sleep(RETRY_SECONDS)  # until Ray has started a dead owner again, it refuses to be asked
        self.asked[group.prepare.remote()] = group, None
