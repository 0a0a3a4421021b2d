"""What pictures of views are made from: a run, a member's state, a finished network, or a configuration."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rolekd_ray.config import Settings, load_settings, parse_settings
from rolekd_ray.errors import CheckpointError, ConfigError, RunDirectoryError, SearchSpaceError, unknown_name
from rolekd_ray.policy.jobs import policies_from_dict
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, load_schedule, schedule_from_dict
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.log import has_log, read_population
from rolekd_ray.search.pipeline import schedule_so_far
from rolekd_ray.search.population_search import STATES, best_state
from rolekd_ray.search.run_directory import CONFIG, ENVIRONMENT, RunDirectory, open_run
from rolekd_ray.storage import ObjectPath, Place, children, place
from rolekd_ray.training.checkpoint import has_checkpoint, read_description
from rolekd_ray.training.epochs import PoliciesAt


@dataclass(frozen=True, eq=False)
class Viewed:
    """What views are made from.

    Attributes:
        settings: of the training.
        space: that the policies are written in.
        policies_at: the policies in force.
        epochs: those that the policies are for, from 0.
        train: how many images are trained on; None: all that are not held out.
        state: checkpoint that may hold a learned agent; None: there is none.
        run: run directory, if that is what was named.
    """

    settings: Settings
    space: SearchSpace
    policies_at: PoliciesAt
    epochs: range
    train: int | None
    state: Place | None = None
    run: Place | None = None

    def under(self, schedule: Schedule) -> "Viewed":
        """Return it with the policies and epochs of a schedule."""
        return replace(self, space=schedule.space, policies_at=schedule.policies_at, epochs=range(schedule.epochs))


def find_viewed(what: str, overrides: Sequence[str] = (), schedule: Schedule | None = None) -> Viewed:
    """Find out what a name stands for, and read it.

    Args:
        what: a run directory (its best schedule so far), a member's state in one (its interval's policies), the
            checkpoint of a final training (its schedule), or a configuration (no policies).
        overrides: of its settings, `key=value`.
        schedule: is in force instead.

    Raises:
        InputError: there is no such thing, or it cannot be read.
    """
    viewed = _find(what, overrides, read_schedule=schedule is None)
    return viewed if schedule is None else viewed.under(schedule)


def _find(what: str, overrides: Sequence[str], *, read_schedule: bool) -> Viewed:
    where = place(what)
    if any((where / name).is_file() for name in (CONFIG, ENVIRONMENT)):
        return _of_run(open_run(where), overrides, read_schedule)
    if has_checkpoint(where):
        description = read_description(where)
        if "job" in description:
            return _of_state(where.absolute(), description["job"], overrides)
        if "plan" in description:
            return _of_final(where, description["plan"], overrides)
        raise CheckpointError(
            f"{where}: does not say how it was trained; expected a checkpoint of `rolekd train` or run"
        )
    if where.parent.name == STATES and where.parent.is_dir():
        names = [folder.name for folder in children(where.parent, "[0-9]*")]
        raise CheckpointError(unknown_name(str(where.parent), "member's state", where.name, names))
    if isinstance(where, ObjectPath) or where.is_dir():
        raise RunDirectoryError(f"{where}: got no run and no checkpoint there; expected {_EXPECTED}")
    return _of_configuration(what, overrides)


_EXPECTED = "a run directory, a member's state in one, a finished network's checkpoint, or a configuration"


def _of_configuration(what: str, overrides: Sequence[str]) -> Viewed:
    where = place(what)
    if not where.exists() and (where.suffix or where.name != what):
        raise ConfigError(f"{what}: no such file or folder; expected {_EXPECTED}")
    settings = load_settings(what, overrides)
    return Viewed(settings, settings.search_space(), _no_policies, range(settings.search.epochs), settings.data.train)


def _of_run(run: RunDirectory, overrides: Sequence[str], read_schedule: bool) -> Viewed:
    settings = load_settings(run.path / CONFIG, overrides)
    population = read_population(run.path) if has_log(run.path) else None
    state = best_state(run.path, population) if population is not None and population.scores else None
    epochs = range(settings.search.epochs)
    viewed = Viewed(settings, settings.search_space(), _no_policies, epochs, settings.data.train, state, run.path)
    return viewed.under(schedule_so_far(run)) if read_schedule else viewed


def _of_state(folder: Place, job: Any, overrides: Sequence[str]) -> Viewed:
    """Read a member's state: its job says which policies; the run around it, all else."""
    search = folder.parent.parent
    run = search if (search / CONFIG).is_file() else search.parent
    if folder.parent.name != STATES or not (run / CONFIG).is_file():
        raise CheckpointError(f"{folder}: got a member's state outside of its run; expected it in a run's {STATES}/")
    settings = load_settings(run / CONFIG, overrides)
    space = settings.search_space()
    try:
        policies, epochs = policies_from_dict(job["policies"], space), range(job["start_epoch"], job["end_epoch"])
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, SearchSpaceError) as error:
        raise CheckpointError(f"{folder}: its job does not fit the run's search space: {error}") from error
    fixed: Schedule | None = None  # the student's search of a sequential run goes by the teacher's finished schedule
    if search == run and (file := run / "teacher" / "schedule.yaml").is_file():
        fixed = load_schedule(file).stretched(settings.search.epochs)

    def policies_at(role: Role, epoch: int) -> list[tuple[float, Policy]]:
        if role in policies or fixed is None:
            return [(1.0, policies.get(role, Policy()))]
        return fixed.policies_at(role, epoch)

    return Viewed(settings, space, policies_at, epochs, settings.data.train, folder)


def _of_final(folder: Place, plan: Any, overrides: Sequence[str]) -> Viewed:
    """Read the checkpoint of a final training: its plan holds settings, schedule and length."""
    where = f"{folder}: plan"
    try:
        given, train, epochs = plan["schedule"], plan["train"], range(int(plan["epochs"]))
        read = dict(plan["settings"])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: damaged: {type(error).__name__}: {error}") from error
    settings = parse_settings(read, overrides, where=where)
    viewed = Viewed(settings, settings.search_space(), _no_policies, epochs, train, folder)
    if given is None:
        return viewed
    return viewed.under(schedule_from_dict(given, where=where).stretched(len(epochs)))


def _no_policies(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    return [(1.0, Policy())]
