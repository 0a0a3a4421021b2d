"""The search on Ray Tune: one light trial per member, slots that live as long as the search."""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.error import TuneError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rolekd_ray.config import SearchSettings, SlotSettings
from rolekd_ray.errors import RolekdError
from rolekd_ray.files import writing
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.dispatcher import Dispatcher
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.member import Member
from rolekd_ray.search.scheduler import PopulationScheduler
from rolekd_ray.search.slot_pool import SlotPool
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
    members = [m for m in sorted(population.live) if not population.ended(m, population.generations - 1)]
    if not members:
        return
    name = f"dispatcher-{uuid4().hex[:8]}"
    pool = SlotPool(slots, make_worker, storage=ledger.folder.absolute() / "tune")
    pool.grow(slot_count(slots, len(members)))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    dispatcher: Any = (
        ray.remote(Dispatcher)
        .options(name=name, num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(ledger.folder.absolute(), list(pool.slots), search.max_failures)
    )
    # Tune writes aside: on storage that fails under it, it prints and raises what would stand in place of our error
    aside = tempfile.TemporaryDirectory(prefix="rolekd-tune-")
    try:
        # Slots first: 16 trials that start at once would keep the first interval waiting for half a minute
        pool.prepare()
        ray.get(dispatcher.refresh.remote())
        pool.follow_cluster(dispatcher, most=len(members) if slots.count == "auto" else slots.count)
        _fit(PopulationScheduler(ledger, dispatcher, search.max_failures), aside.name, name, members)
        failure = ray.get(dispatcher.failure.remote())
        if failure is not None:
            raise failure
        _keep(aside.name, ledger)
    finally:
        aside.cleanup()
        pool.stop()
        ray.kill(dispatcher)


def _fit(scheduler: PopulationScheduler, folder: str, name: str, members: list[int]) -> None:
    try:
        _tuner(scheduler, folder, name, members).fit()
    except TuneError as error:
        if scheduler.error is not None:
            raise scheduler.error from None
        raise RolekdError(f"Ray Tune stopped: {str(error).strip().splitlines()[-1]}") from error


def _keep(folder: str, ledger: Ledger) -> None:
    """Keep Tune's own files with the run, for who wants to look; nothing reads them back."""
    if isinstance(ledger.folder, Path):
        with writing(ledger.folder / "tune"):
            shutil.copytree(folder, ledger.folder / "tune", dirs_exist_ok=True)


def _tuner(scheduler: PopulationScheduler, folder: str, name: str, members: list[int]) -> Tuner:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the scheduler tells of deaths, without their tracebacks
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
            storage_path=folder,
            failure_config=FailureConfig(max_failures=-1),  # the scheduler counts, per interval
            verbose=0,
        ),
    )
