"""A slot of several workers: a Ray Train worker group that lives through the whole search, and the actor that owns it.

Ray Train starts the workers and connects them (NCCL on GPUs, gloo on CPUs). In between they sit in a loop and take
commands, so a perturbation costs a message and not a launch of 10 to 60 seconds. When one dies, all are started again.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from rolekd_ray.config import SlotSettings
from rolekd_ray.errors import WorkersLostError
from rolekd_ray.policy.population import Job
from rolekd_ray.slots.group_room import Room
from rolekd_ray.slots.interface import Worker
from rolekd_ray.storage import Place

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",  # there was room a moment ago; if somebody took it, look again
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # the others may wait for a dead worker, and need no goodbye
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Of a group's owner and all that Ray Train starts below it."""

POLL_SECONDS = 5.0
"""An idle worker asks this often; far below the half hour after which gloo and NCCL give a silent peer up."""


class GroupSlot:
    """Owns one worker group and hands it one interval at a time; an async actor, so that its workers can talk to it.

    Args:
        make_worker: called in every worker with its `sharding`.
        settings: how many workers, and what each takes.
        name: of this actor.
        storage: folder that all nodes see, for Ray Train's own files; nothing reads them back.
    """

    def __init__(self, make_worker: Callable[..., Worker], settings: SlotSettings, name: str, storage: Place):
        self._settings, self._storage = settings, storage
        self._config = {"owner": name, "make_worker": make_worker}
        self._room = Room(settings)
        self._running: asyncio.Future | None = None
        self._group: str | None = None  # the workers that are up now
        self._leaving: str | None = None  # those told to make way for more
        self._ended: BaseException | None = None
        self._command: tuple[int, Job] | None = None
        self._number = 0
        self._reply: asyncio.Future | None = None
        self._stopping = False
        self._done: dict[int, int] = {}
        self._one, self._changed = asyncio.Lock(), asyncio.Condition()
        self.pids: list[int] = []

    async def prepare(self) -> int:
        """Start the group if there is none; wait until its workers are built; return this process's id."""
        if self._running is None or self._running.done():
            self._ended = None
            self._running = asyncio.ensure_future(asyncio.to_thread(self._run, asyncio.get_running_loop()))
            self._running.add_done_callback(lambda _: asyncio.ensure_future(self._tell(self._over)))
        await self._until(lambda: self._group is not None)
        return os.getpid()

    async def train(self, job: Job) -> dict[str, Any]:
        """Train one interval; see `Worker.train`. One at a time; before it, the group grows if there is room now.

        Raises:
            WorkersLostError: a worker died meanwhile; the group comes back by itself.
        """
        async with self._one:  # a restarted dispatcher may ask while its predecessor's interval is under way
            if self._group is not None and await asyncio.to_thread(self._room.grown):
                await self._tell(self._leave)
            await self.prepare()
            self._number += 1
            self._reply = asyncio.get_running_loop().create_future()
            async with self._changed:
                self._command = self._number, job
                self._changed.notify_all()
            try:
                return await self._reply
            finally:
                self._command = self._reply = None

    async def progress(self) -> int:
        """Return a number that changes as long as some worker gets on; see `rolekd_ray.progress`."""
        return sum(self._done.values())

    async def stop(self) -> None:
        """End the workers; return when Ray Train has given their resources back. Killing this actor alone would not."""
        if self._running is None:
            return
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()
        await asyncio.wait([self._running])

    # ---- what the workers call

    async def join(self, group: str, pids: list[int]) -> None:
        """Hear that all workers of a new group are up."""
        await asyncio.to_thread(self._room.wish, len(pids))

        def take() -> None:
            self._group, self.pids = group, pids

        await self._tell(take)

    async def refuse(self, error: Exception) -> None:
        """Hear that a worker could not be built."""

        def take() -> None:
            self._ended = error

        await self._tell(take)

    async def next(self, group: str, done: int) -> tuple[int, Job | None] | None:
        """Return the command after number `done`, or None after a while without one: a sign of life.

        A command is a number and a job; no job: leave.
        """
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._new(group, done)), POLL_SECONDS)
            except TimeoutError:
                return None
        return (done + 1, None) if self._stopping or group == self._leaving else self._command

    async def advanced(self, rank: int, done: int) -> None:
        """Hear how much a worker has got done."""
        self._done[rank] = done

    async def reply(self, group: str, number: int, metrics: dict[str, Any] | None, error: Exception | None) -> None:
        """Take the outcome of a command; late ones, of a group that was lost, are ignored."""
        if group != self._group or number != self._number or self._reply is None or self._reply.done():
            return
        if error is not None:
            self._reply.set_exception(error)
        else:
            self._reply.set_result(metrics)

    # ----

    def _new(self, group: str, done: int) -> bool:
        return self._stopping or group == self._leaving or (self._command is not None and self._command[0] > done)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one group after the other; in a thread of its own."""
        from rolekd_ray.slots.group_run import run_group  # only now: Ray Train and torch take seconds to import

        while workers := self._room.wait(lambda: self._stopping):
            reason: Exception | None = None
            try:
                run_group(self._config, self._settings, workers, self._storage)
            except WorkersLostError as error:
                reason = error
                log.warning("%s: %s", self._config["owner"], error)
            asyncio.run_coroutine_threadsafe(self._tell(partial(self._lose, reason)), loop).result()
            if self._stopping or self._ended is not None:
                break
        self._room.give_back()

    def _leave(self) -> None:
        self._leaving, self._group = self._group, None

    def _lose(self, reason: Exception | None) -> None:
        self._group = None
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(WorkersLostError(str(reason)))

    def _over(self) -> None:
        assert self._running is not None
        self._ended = self._ended or self._running.exception() or RuntimeError("the worker group was stopped")
        self._lose(None)

    async def _tell(self, change: Callable[[], None]) -> None:
        async with self._changed:
            change()
            self._changed.notify_all()

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: holds() or self._ended is not None)
        if self._ended is not None:
            raise self._ended
