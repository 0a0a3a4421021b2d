"""One population search, from its rule to its best schedule."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rolekd_ray.config import Settings
from rolekd_ray.errors import ConfigError, PopulationLostError, RolekdError
from rolekd_ray.policy.jobs import state_name
from rolekd_ray.policy.lineage import schedule_of, shortfalls
from rolekd_ray.policy.population import Population, Rule
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.roles import Role
from rolekd_ray.search.initial import first_policies
from rolekd_ray.search.ledger import STATES, Ledger, Observer
from rolekd_ray.search.local import run_local
from rolekd_ray.search.log import has_log
from rolekd_ray.slots.interface import Task
from rolekd_ray.storage import Place, places


def rule_of(settings: Settings, roles: tuple[Role, ...], *, new: bool = True) -> Rule:
    """Return the population rule that settings ask for; first policies from elsewhere only for a `new` search.

    Raises:
        InputError: first policies cannot be read, or do not fit.
    """
    search = settings.search
    return Rule(
        seed=settings.seed,
        population_size=search.population_size,
        epochs=search.epochs,
        interval_epochs=search.perturbation_interval_epochs,
        roles=roles,
        space=settings.search_space(),
        quantile=search.quantile,
        synchronous=search.mode == "synchronous",
        initial=search.initial_policies,
        resample_probability=search.resample_probability,
        max_shift=search.max_shift_bins,
        explorer=search.explorer,
        optuna_sampler=search.optuna_sampler,
        min_lineages=search.min_lineages,
        first_policies=first_policies(settings, roles) if new else None,
    )


def search_population(
    folder: Place,
    settings: Settings,
    roles: tuple[Role, ...],
    *,
    teacher: Place | tuple[Place, ...] | None = None,
    fixed: Schedule | None = None,
    local: bool = False,
    prolong: bool = True,
    observers: Sequence[Observer] = (),
) -> tuple[Schedule, Population]:
    """Search schedules for these roles, or go on with the search that lies in the folder.

    Args:
        folder: gets log, states and what is derived from them.
        settings: of the run.
        roles: are trained and evolve; the last one's validation accuracy is the fitness.
        teacher: checkpoint of the frozen teacher, or those of an ensemble, where only the student is trained.
        fixed: policies of roles that do not evolve.
        local: in this process, without Ray; else Ray must be initialised.
        prolong: move the log's goal to `search.epochs`; else the search keeps the goal it began with.
        observers: see `Ledger`.

    Returns:
        The best member's schedule, and the population as it ended.

    Raises:
        RolekdError: no member reached the goal, or the search ended early.
    """
    from rolekd_ray.slots.worker import TrainingWorker  # lazily, as torch with it: dispatcher and members need neither

    # Absolute, for slots have working folders of their own
    given = tuple(where.absolute() for where in places(teacher)) or None
    task = Task(settings, (folder / STATES).absolute(), roles, given, fixed)
    new = not has_log(folder)
    rule = rule_of(settings, roles, new=new)  # an older one keeps its own
    if new and settings.search.initial_filter and roles == (Role.STUDENT,) and given is not None:
        from rolekd_ray.search.prefilter import filtered_first

        rule = replace(rule, first_policies=filtered_first(settings, given))
    with Ledger(folder, rule, observers, prolong=prolong) as ledger:
        population = ledger.population
        if prolong and settings.search.epochs < population.epochs:
            raise ConfigError(
                f"search.epochs: got {settings.search.epochs}; expected at least {population.epochs}, the run's goal"
            )
        if not population.finished and local:
            run_local(ledger, TrainingWorker(task))
        elif not population.finished:
            from rolekd_ray.search.tune_search import run_on_ray

            run_on_ray(ledger, partial(TrainingWorker, task), search=settings.search, slots=settings.slots)
        ledger.collect()
        _check_end(ledger)
        return schedule_of(population, *population.best()), population


def best_state(folder: Place, population: Population) -> Place:
    """Return the folder of the best member's newest state."""
    return folder / STATES / state_name(*population.best())


def _check_end(ledger: Ledger) -> None:
    population = ledger.population
    if not population.live:
        raise PopulationLostError("\n".join([f"{ledger.folder}: every member was dropped", *shortfalls(population)]))
    short = [m for m in sorted(population.live) if not population.ended(m, population.generations - 1)]
    if short:
        raise RolekdError(f"{ledger.folder}: the search ended before members {short} reached epoch {population.epochs}")
