"""A slot of several workers: a Ray Train worker group that lives through the whole search, and the actor that owns it.

Ray Train starts the workers, connects them (NCCL on GPUs, gloo on CPUs) and starts them again when one dies. In between
they sit in a loop and take commands, so a perturbation costs a message and not a launch of 10 to 60 seconds.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from ray._raylet import PlacementGroupID
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.util.placement_group import PlacementGroup, remove_placement_group

from rolekd_ray.config import SlotSettings
from rolekd_ray.errors import WorkersLostError
from rolekd_ray.policy.population import Job
from rolekd_ray.slots.interface import Worker
from rolekd_ray.storage import Place

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
        self._make_worker, self._settings, self._name, self._storage = make_worker, settings, name, storage
        self._training: asyncio.Future | None = None
        self._group: str | None = None  # the workers that are up now
        self._ended: BaseException | None = None
        self._command: tuple[int, Job] | None = None
        self._number = 0
        self._reply: asyncio.Future | None = None
        self._stopping = False
        self._one, self._changed = asyncio.Lock(), asyncio.Condition()
        self.pids: list[int] = []

    async def prepare(self) -> int:
        """Start the group if there is none; wait until its workers are built; return this process's id."""
        if self._training is None or self._training.done():
            self._ended = None
            self._training = asyncio.ensure_future(asyncio.to_thread(self._run))
            self._training.add_done_callback(lambda _: asyncio.ensure_future(self._tell(self._over)))
        await self._until(lambda: self._group is not None)
        return os.getpid()

    async def train(self, job: Job) -> dict[str, Any]:
        """Train one interval; see `Worker.train`. One at a time.

        Raises:
            WorkersLostError: a worker died meanwhile; the group comes back by itself.
        """
        async with self._one:  # a restarted dispatcher may ask while its predecessor's interval is under way
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

    async def stop(self) -> None:
        """End the workers; return when Ray Train has given their resources back. Killing this actor alone would not."""
        if self._training is None:
            return
        async with self._changed:
            self._stopping = True
            self._changed.notify_all()
        await asyncio.wait([self._training])

    # ---- what the workers call

    async def join(self, group: str, pids: list[int], reserved: str) -> None:
        """Hear that all workers of a (new) group are up, and which placement group holds their resources."""
        _internal_kv_put(self._name, reserved)

        def take() -> None:
            self._group, self.pids = group, pids
            self._fail(WorkersLostError("its workers were replaced"))  # if that came before `lost`

        await self._tell(take)

    async def lost(self, reason: str) -> None:
        """Hear that a worker died; Ray Train starts all of them again, and the new ones join."""

        def take() -> None:
            self._group = None
            self._fail(WorkersLostError(reason))

        await self._tell(take)

    async def refuse(self, error: Exception) -> None:
        """Hear that a worker could not be built."""

        def take() -> None:
            self._ended = error

        await self._tell(take)

    async def next(self, group: str, done: int) -> tuple[int, Job | None] | None:
        """Return the command after number `done`, or None after a while without one: a sign of life.

        A command is a number and a job; no job: stop.
        """
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._new(done)), POLL_SECONDS)
            except TimeoutError:
                return None
        return (done + 1, None) if self._stopping else self._command

    async def reply(self, group: str, number: int, metrics: dict[str, Any] | None, error: Exception | None) -> None:
        """Take the outcome of a command; late ones, of a group that was lost, are ignored."""
        if group != self._group or number != self._number or self._reply is None or self._reply.done():
            return
        if error is not None:
            self._reply.set_exception(error)
        else:
            self._reply.set_result(metrics)

    # ----

    def _new(self, done: int) -> bool:
        return self._stopping or (self._command is not None and self._command[0] > done)

    def _run(self) -> None:
        # Lazily: whoever finds this actor by name imports this module, and the dispatcher needs neither torch nor Train
        from rolekd_ray.slots.group_launch import launch

        self._release_what_died()
        launch(self._make_worker, self._settings, self._name, self._storage)

    def _release_what_died(self) -> None:
        """Give back what the group of this actor's predecessor had reserved.

        Ray Train's own cleaner does it too, but asks the dashboard who is alive, and a private Ray has none. What a
        group had reserved that died before its workers were up, stays with Ray.
        """
        reserved = _internal_kv_get(self._name)
        if reserved is not None:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(reserved.decode())))

    async def _tell(self, change: Callable[[], None]) -> None:
        async with self._changed:
            change()
            self._changed.notify_all()

    def _over(self) -> None:
        assert self._training is not None
        self._ended = self._training.exception() or RuntimeError("Ray Train ended the worker group")
        self._group = None
        self._fail(WorkersLostError(str(self._ended)))

    def _fail(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: holds() or self._ended is not None)
        if self._ended is not None:
            raise self._ended
