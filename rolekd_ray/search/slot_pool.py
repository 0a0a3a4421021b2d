"""The slots of a search: started by the driver, which owns them, and more of them when nodes join."""

import logging
from collections.abc import Callable
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from rolekd_ray.config import SlotSettings
from rolekd_ray.errors import ConfigError, RolekdError
from rolekd_ray.search.cluster import slots_that_fit, workers_that_fit
from rolekd_ray.search.demand import Demand
from rolekd_ray.slots.actor import WATCH, Slot
from rolekd_ray.slots.group import ENVIRONMENT, GroupSlot
from rolekd_ray.slots.interface import Worker
from rolekd_ray.storage import Place

log = logging.getLogger(__name__)

SLOT_START_SECONDS = 300
FOLLOW_SECONDS = 5.0
STOP_SECONDS = 15.0


class SlotPool:
    """Starts slots and ends them.

    Args:
        settings: what a slot takes.
        make_worker: called once in every worker's process.
        storage: folder for Ray Train's own files.
    """

    def __init__(self, settings: SlotSettings, make_worker: Callable[..., Worker], *, storage: Place):
        self.settings, self.make_worker, self.storage = settings, make_worker, storage
        self.slots: dict[str, Any] = {}
        self._key = uuid4().hex[:8]
        self._stopped = Event()
        self._follower: Thread | None = None
        self._demand: Demand | None = None

    def grow(self, count: int) -> list[str]:
        """Start as many slots as are lacking; return their names. They are not prepared."""
        names = [f"slot-{self._key}-{number}" for number in range(len(self.slots), count)]
        for name in names:
            self.slots[name] = self._start(name)
        return names

    def prepare(self, timeout_seconds: float = SLOT_START_SECONDS) -> None:
        """Wait until all slots have built their workers.

        Raises:
            ConfigError: they are not up in time.
            RolekdError: whatever a worker refuses.
        """
        try:
            # Again if a slot's process dies meanwhile, unlike intervals: Ray starts it anew
            asked = [slot.prepare.options(max_task_retries=-1).remote() for slot in self.slots.values()]
            ray.get(asked, timeout=timeout_seconds)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, RolekdError) else error) from None
        except GetTimeoutError:
            raise ConfigError(
                f"slots: {len(self.slots)} were not up after {timeout_seconds:g} s; expected a cluster with that much "
                "free"
            ) from None

    def follow_cluster(self, dispatcher: Any, *, most: int) -> None:
        """Ask the cluster for room for `most` slots, and start those that are lacking as nodes join, until `stop`.

        Slots of a node that leaves need no care: Ray starts them again where there is room, or when there is.
        """
        self._demand = Demand(self.settings, most * self.settings.most_workers)
        self._follower = Thread(target=self._follow, args=(dispatcher, most, self._demand), daemon=True)
        self._follower.start()

    def stop(self) -> None:
        """End all slots, and ask the cluster for none any more."""
        self._stopped.set()
        if self._follower is not None and self._demand is not None:
            self._follower.join()
            self._demand.let_go()
        if self.settings.most_workers > 1:
            ray.wait(
                [slot.stop.remote() for slot in self.slots.values()], num_returns=len(self.slots), timeout=STOP_SECONDS
            )
        for slot in self.slots.values():
            ray.kill(slot)

    def _start(self, name: str) -> Any:
        # A task that a slot's death cut short is not retried by Ray but handed out again by the dispatcher
        options: dict[str, Any] = {"name": name, "max_restarts": -1, "max_task_retries": 0}
        each = self.settings.resources_per_worker
        if self.settings.most_workers == 1:
            slot = ray.remote(concurrency_groups={WATCH: 1})(Slot)  # type: ignore[call-overload]
            return slot.options(num_cpus=each.cpus, num_gpus=each.gpus, **options).remote(self.make_worker)

        # Ray Train reserves what the workers take, in a placement group of its own; the owner only talks
        owner = ray.remote(GroupSlot).options(num_cpus=0, runtime_env={"env_vars": ENVIRONMENT}, **options)
        return owner.remote(self.make_worker, self.settings, name, self.storage)

    def _follow(self, dispatcher: Any, most: int, demand: Demand) -> None:
        while True:
            try:
                demand.ask(workers_that_fit(self.settings))
                self.grow(min(most, slots_that_fit(self.settings)))
                # All of them, every time: a restarted dispatcher knows only those it began with
                dispatcher.offer.remote(list(self.slots))
            except RayError as error:
                log.warning("cannot see how large the cluster is: %s", error)
            if self._stopped.wait(FOLLOW_SECONDS):
                return
