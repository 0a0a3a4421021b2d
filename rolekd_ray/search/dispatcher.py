"""The dispatcher: an actor that hands intervals to slots and their outcomes to the members that asked."""

import asyncio
import logging
import time
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rolekd_ray.errors import InputError, TrainingError, WorkersLostError
from rolekd_ray.policy.jobs import Job, policies_to_dict
from rolekd_ray.search.log import LogReader, begin, fold
from rolekd_ray.storage import Place

log = logging.getLogger(__name__)

MOST_DEATHS = 10
"""So many slots may die over one interval before it is taken for the cause."""


HUNG_SECONDS = 300.0
"""A slot that gets nothing done for so long, no batch and no decoded picture, hangs."""


class Dispatcher:
    """Reads the log, so it can be killed and restarted at any moment; runs on the node of the log's writer.

    Args:
        folder: the search's folder.
        slots: names of the slots' actors.
        max_failures: how often an interval may fail by an error of its own before its member is given up. Deaths of
            slots do not count, for they say little about the member, unless there are `MOST_DEATHS`.
        hung_seconds: so long a slot may get nothing done while it trains before it is taken for hung.
    """

    def __init__(self, folder: Place, slots: list[str], max_failures: int, hung_seconds: float = HUNG_SECONDS):
        self.max_failures, self.hung_seconds = max_failures, hung_seconds
        self.names = set(slots)
        # By name: handles among the arguments would tie a restart to the object store
        self.free: dict[Any, str | None] = {ray.get_actor(slot): None for slot in slots}  # slot -> state it holds
        self.waiting: list[tuple[str | None, asyncio.Future]] = []  # (state wanted, who gets the slot)
        self.running: dict[tuple[int, int], asyncio.Task] = {}
        self.reviving: dict[Any, asyncio.Future] = {}  # held here, for the event loop holds tasks weakly
        self.fatal: InputError | None = None
        self.started = False
        self.folder = folder
        self.changed = asyncio.Condition()
        try:
            self.log = LogReader(folder)
            first, *others = self.log.read()
            self.population = begin([first], folder)
            self._tell(others)
        except InputError as error:  # told to who asks: if it could not be made, members would fail for it
            self.fatal = error

    async def refresh(self) -> None:
        """Read what was added to the log, start the intervals that it decided, wake who waits for one."""
        if self.fatal is not None:
            return
        before = dict(self.population.newest), set(self.population.live)
        try:
            self._tell(self.log.read())
        except InputError as error:  # nobody looks at this call's outcome: without a decision all would wait for ever
            await self._stop(error)
            return
        if self.started and before == (self.population.newest, self.population.live):
            return  # waking every member at every score would cost the square of their number
        self.started = True
        for job in filter(None, map(self.population.ask, sorted(self.population.live))):
            self._start(job)  # the member's trial may still be starting
        async with self.changed:
            self.changed.notify_all()

    def _tell(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            fold(self.population, record, self.folder)

    async def interval(self, member: int, last: int) -> dict[str, Any] | None:
        """Return the outcome of a member's first interval after generation `last` that the log lacks.

        Waits until it is decided and trained. None: there is none, the member is at its goal or the search stops.
        Asking again, as a restarted proxy does, gives the same outcome; nothing is trained twice.
        """
        while self.fatal is None and member in self.population.live:
            population = self.population
            generation = population.newest[member]
            ended = population.ended(member, generation)
            if ended and generation + 1 >= population.generations:
                break
            if not ended and generation > last:
                return await asyncio.shield(self._start(population.jobs[member, generation]))
            async with self.changed:
                await self.changed.wait()
        return None

    async def offer(self, slots: list[str]) -> None:
        """Take slots into service that are new here, once they are up."""
        for name in set(slots) - self.names:
            self.names.add(name)
            slot = ray.get_actor(name)
            self.reviving[slot] = asyncio.ensure_future(self._revive(slot))

    async def failure(self) -> InputError | None:
        """Return the error that stopped the whole search, if one did."""
        return self.fatal

    def _start(self, job: Job) -> asyncio.Task:
        """Return the one task that trains a job."""
        key = job.member, job.generation
        if key not in self.running:
            self.running = {k: task for k, task in self.running.items() if k[0] != job.member}
            self.running[key] = asyncio.ensure_future(self._train(job))
        return self.running[key]

    async def _train(self, job: Job) -> dict[str, Any] | None:
        """Have some slot train the job, whatever dies meanwhile."""
        failures = deaths = 0
        while True:
            slot = await self._acquire(job.source)
            if self.fatal is not None:
                self._release(slot, None)
                return None
            try:
                metrics = await self._unless_hung(slot, job)
            except RayTaskError as error:
                cause = error.cause
                self._release(slot, None)
                if await self._given_up(job):
                    return None
                if isinstance(cause, InputError):  # bad data, a full disk: no member's fault, nobody can go on
                    await self._stop(cause)
                    return None
                failures += 1
                log.warning("%s failed (%d of %d): %s", job.state, failures, self.max_failures + 1, cause)
                # A loss that is not finite follows from the job alone; doing it again would give the same
                if isinstance(cause, TrainingError) or failures > self.max_failures:
                    return {"generation": job.generation, "failed": f"{type(cause).__name__}: {cause}"}
            # Processes are gone, by themselves or killed for hanging: another slot repeats the interval
            except (RayError, WorkersLostError) as error:
                deaths += 1
                self._bury(slot, job, error)
                if deaths > MOST_DEATHS:
                    reason = f"its interval ended with the death of its slot {deaths} times: {error}"
                    return {"generation": job.generation, "failed": reason}
            else:
                self._release(slot, job.state)
                return self._outcome(job, metrics)

    async def _unless_hung(self, slot: Any, job: Job) -> dict[str, Any]:
        """Return the metrics of an interval; a slot that gets on no more is killed and started again."""
        training = asyncio.ensure_future(_result(slot.train.remote(job)))
        seen, since = None, time.monotonic()
        while not (await asyncio.wait([training], timeout=self.hung_seconds / 10))[0]:
            progress = await self._progress(slot)
            if progress is not None and progress != seen:
                seen, since = progress, time.monotonic()
            elif time.monotonic() - since > self.hung_seconds:
                training.cancel()
                ray.kill(slot, no_restart=False)
                raise WorkersLostError(f"nothing of {job.state} was done for {self.hung_seconds:.0f} s")
        try:
            return training.result()
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, WorkersLostError) else error) from None

    async def _progress(self, slot: Any) -> int | None:
        """Return how far a slot has got, or None if it does not say."""
        try:
            return await asyncio.wait_for(_result(slot.progress.remote()), self.hung_seconds / 10)
        except (TimeoutError, RayError):
            return None

    async def _given_up(self, job: Job) -> bool:
        """Whether nobody waits for a job any more: its member has failed meanwhile, and its source may be collected."""
        await self.refresh()
        return self.fatal is not None or self.population.ask(job.member) != job

    def _bury(self, slot: Any, job: Job, error: Exception) -> None:
        log.warning("a slot died while it trained %s: %s", job.state, error)
        self.reviving[slot] = asyncio.ensure_future(self._revive(slot))

    def _outcome(self, job: Job, metrics: dict[str, Any]) -> dict[str, Any]:
        return {
            "generation": job.generation,
            "epoch": job.end_epoch,
            "donor": job.donor,
            "score": metrics["score"],
            "metrics": metrics,
            "policies": policies_to_dict(job.policies, self.population.rule.space),
        }

    async def _acquire(self, state: str | None) -> Any:
        """Return a free slot, best the one that holds the state; waits its turn if all are busy."""
        if self.free:
            slot = next((slot for slot, held in self.free.items() if held is not None and held == state), None)
            slot = slot if slot is not None else next(iter(self.free))
            del self.free[slot]
            return slot
        turn: asyncio.Future = asyncio.get_running_loop().create_future()
        self.waiting.append((state, turn))
        return await turn

    def _release(self, slot: Any, held: str | None) -> None:
        """Pass a slot on: to who wants the state it holds, else to who waits longest."""
        if not self.waiting:
            self.free[slot] = held
            return
        index = next((i for i, (state, _) in enumerate(self.waiting) if held is not None and state == held), 0)
        self.waiting.pop(index)[1].set_result(slot)

    async def _revive(self, slot: Any) -> None:
        """Take a slot back into service once Ray has restarted its process; the others go on meanwhile."""
        while True:
            try:
                await slot.prepare.remote()
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    await self._stop(error.cause)
                log.warning("a restarted slot cannot build its worker: %s", error.cause)
                await asyncio.sleep(5)
            except RayError:
                await asyncio.sleep(0.2)
            else:
                self._release(slot, None)
                return

    async def _stop(self, error: InputError) -> None:
        self.fatal = error
        async with self.changed:
            self.changed.notify_all()


async def _result(reference: Any) -> Any:
    return await reference
