"""The search on Ray Tune: one light trial per member, slots that live as long as the search."""

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rolekd_ray.config import SearchSettings, SlotSettings
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.member import Member
from rolekd_ray.search.scheduler import PopulationScheduler
from rolekd_ray.slots.actor import Slot
from rolekd_ray.slots.interface import Worker


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
    members = sorted(member for member in population.live if population.ask(member) or not _at_goal(ledger, member))
    if not members:
        return
    key = uuid4().hex[:8]
    name = f"dispatcher-{key}"
    actors = _start_slots(slot_count(slots, len(members)), slots, make_worker, key)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    dispatcher = (
        ray.remote(Dispatcher)
        .options(name=name, num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(ledger.folder.absolute(), list(actors), search.max_failures)
    )
    try:
        # Slots first: 16 trials that start at once would keep the first interval waiting for half a minute
        ray.get([slot.prepare.remote() for slot in actors.values()])
        ray.get(dispatcher.refresh.remote())
        _tuner(ledger, dispatcher, name, members, search).fit()
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


def _tuner(ledger: Ledger, dispatcher: Any, name: str, members: list[int], search: SearchSettings) -> Tuner:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    return Tuner(
        Member,
        param_space={"member": tune.grid_search(members), "dispatcher": name},
        tune_config=TuneConfig(
            scheduler=PopulationScheduler(ledger, dispatcher),
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


def _at_goal(ledger: Ledger, member: int) -> bool:
    return ledger.population.reported(member, ledger.population.generations - 1)
