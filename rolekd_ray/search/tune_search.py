"""The search on Ray Tune: one light trial per member, slots that live as long as the search."""

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rolekd_ray.config import SearchSettings, SlotSettings
from rolekd_ray.errors import ConfigError, RolekdError
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.member import Member
from rolekd_ray.search.scheduler import PopulationScheduler
from rolekd_ray.slots.actor import Slot
from rolekd_ray.slots.interface import Worker

SLOT_START_SECONDS = 300


def run_on_ray(
    ledger: Ledger, make_worker: Callable[[], Worker], *, search: SearchSettings, slots: SlotSettings
) -> None:
    """Run the search until every live member reached its goal. Ray must be initialised.

    Args:
        ledger: the search's log and population; the driver is its one writer.
        make_worker: called once in every slot's process.
        search: population settings.
        slots: what a slot takes, and how many there are.

    Raises:
        ConfigError: the slots do not fit on the cluster.
        InputError: whatever made all members unable to go on, such as a full disk.
    """
    population = ledger.population
    members = [m for m in sorted(population.live) if not population.reported(m, population.generations - 1)]
    if not members:
        return
    key = uuid4().hex[:8]
    name = f"dispatcher-{key}"
    actors = _start_slots(slot_count(slots, len(members)), slots, make_worker, key)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    dispatcher: Any = (
        ray.remote(Dispatcher)
        .options(name=name, num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(ledger.folder.absolute(), list(actors), search.max_failures)
    )
    try:
        # Slots first: 16 trials that start at once would keep the first interval waiting for half a minute
        _prepare(list(actors.values()))
        ray.get(dispatcher.refresh.remote())
        _fit(PopulationScheduler(ledger, dispatcher), ledger, name, members, search)
        failure = ray.get(dispatcher.failure.remote())
        if failure is not None:
            raise failure
    finally:
        for actor in (dispatcher, *actors.values()):
            ray.kill(actor)


def _start_slots(count: int, settings: SlotSettings, make_worker: Callable[[], Worker], key: str) -> dict[str, Any]:
    names = [f"slot-{key}-{number}" for number in range(count)]
    # A task that a slot's death cut short is not retried by Ray but handed out again by the dispatcher
    options = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_restarts": -1, "max_task_retries": 0}
    return {name: ray.remote(Slot).options(name=name, **options).remote(make_worker) for name in names}


def _prepare(slots: list[Any]) -> None:
    """Wait until all slots have built their workers."""
    try:
        ray.get([slot.prepare.remote() for slot in slots], timeout=SLOT_START_SECONDS)
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, RolekdError) else error) from None
    except GetTimeoutError:
        raise ConfigError(
            f"slots: {len(slots)} were not up after {SLOT_START_SECONDS} s; expected a cluster with that much free"
        ) from None


def _fit(scheduler: PopulationScheduler, ledger: Ledger, name: str, members: list[int], search: SearchSettings) -> None:
    try:
        _tuner(scheduler, ledger, name, members, search).fit()
    except TuneError as error:
        if scheduler.error is not None:
            raise scheduler.error from None
        raise RolekdError(f"Ray Tune stopped: {str(error).strip().splitlines()[-1]}") from error


def _tuner(
    scheduler: PopulationScheduler, ledger: Ledger, name: str, members: list[int], search: SearchSettings
) -> Tuner:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    return Tuner(
        Member,
        param_space={"member": tune.grid_search(members), "dispatcher": name},
        tune_config=TuneConfig(
            scheduler=scheduler,
            trial_name_creator=lambda trial: f"member-{trial.config['member']:03d}",
            trial_dirname_creator=lambda trial: f"member-{trial.config['member']:03d}",
        ),
        run_config=RunConfig(
            # A new folder per attempt: after a crash the log is what counts, not what Tune left behind
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str((ledger.folder / "tune").absolute()),
            failure_config=FailureConfig(max_failures=search.max_failures),
            verbose=0,
        ),
    )
