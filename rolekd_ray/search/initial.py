"""The policies that a population begins with, where they are not the paper's zeros or drawn at random."""

from collections.abc import Mapping, Sequence
from random import Random

from rolekd_ray.config import Settings
from rolekd_ray.errors import RunDirectoryError, ScheduleError, SearchSpaceError
from rolekd_ray.policy.explorers import EXPLORERS
from rolekd_ray.policy.jobs import Policies
from rolekd_ray.policy.points import dimensions, policies_at
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule, load_schedule
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.log import has_log, read_population
from rolekd_ray.storage import Place

WHERE = "search.initial_from"
MOST_DIFFERENCES = 6
"""An error names so many keys of a search space."""


def first_policies(settings: Settings, roles: tuple[Role, ...]) -> tuple[Policies, ...] | None:
    """Return each member's first policies; None where `Rule.initial` says all (`zero`, `random`).

    Raises:
        InputError: `search.initial_from` cannot be read, lacks a role or a score, or is of another search space.
    """
    search, space, place = settings.search, settings.search_space(), settings.search.initial_from
    if search.initial_policies == "sobol":
        return sobol_policies(space, roles, search.population_size, settings.seed)
    if search.initial_policies == "schedule":
        assert place is not None, "checked by the settings"
        schedule = load_schedule(place)
        _check_space(schedule.space, space, place)
        return spread_over(schedule, roles, search.population_size, place)
    if search.initial_policies == "run":
        assert place is not None, "checked by the settings"
        best = best_of_run(place, space, roles)
        return continued(best, settings, roles)
    return None


def sobol_policies(space: SearchSpace, roles: Sequence[Role], count: int, seed: int) -> tuple[Policies, ...]:
    """Return policies at the first points of a scrambled Sobol sequence: each grid and range is covered evenly.

    One sequence over all roles together, so that pairs of the roles' policies are spread, too.

    Source: scipy.stats.qmc.Sobol.
    """
    from scipy.stats.qmc import Sobol  # lazily: 0.5 s of an import that few searches need

    where = dimensions(space, roles)
    # A power of two, of which the first are taken: scipy warns of any other number
    rng = Random(f"{seed}/initial/sobol").getrandbits(32)
    shares = Sobol(len(where), rng=rng).random_base2((count - 1).bit_length())[:count]
    return tuple(
        policies_at({dimension.name: dimension.at(float(u)) for dimension, u in zip(where, row)}, space, roles)
        for row in shares
    )


def spread_over(schedule: Schedule, roles: Sequence[Role], count: int, place: Place) -> tuple[Policies, ...]:
    """Return policies of a schedule: its last ones for member 0, for the others those at epochs spread evenly.

    By epochs, not by segments: roles have segments of their own, and at one epoch their policies were used together.
    A schedule's last policy was found with networks that are nearly trained; what suits fresh ones is likely earlier.

    Raises:
        ScheduleError: a role has no policy there.
    """
    missing = [role for role in roles if role not in schedule.roles]
    if missing:
        raise ScheduleError(
            f"{WHERE}: {place}: roles: got {', '.join(schedule.roles)}; expected {' and '.join(missing)}, too"
        )
    epochs = [schedule.epochs - 1, *(m * schedule.epochs // (count - 1) for m in range(count - 1))]
    return tuple(
        {role: _whole(schedule.policy_at(role, epoch), schedule.space, role) for role in roles} for epoch in epochs
    )


def best_of_run(place: Place, space: SearchSpace, roles: Sequence[Role]) -> list[Policies]:
    """Return the newest policies of a run's members, best first, by the newest generation that ended for all.

    Where the roles were searched one after the other, the best of each go together, the second best, and so on.

    Raises:
        RunDirectoryError: there is no run, no score yet, or a role was not searched.
        SearchSpaceError: it searched another space.
    """
    found: dict[Role, list[Policy]] = {}
    for folder in (place / "teacher", place):
        population = read_population(folder) if has_log(folder) else None
        for role in population.rule.roles if population is not None else ():
            if role in roles:
                assert population is not None
                _check_space(population.rule.space, space, place)
                found[role] = [policies[role] for policies in _ranked(population)]
    if not (has_log(place) or has_log(place / "teacher")):
        raise RunDirectoryError(f"{WHERE}: {place}: no log of a search; expected a run directory")
    missing = [role for role in roles if not found.get(role)]
    if missing:
        raise RunDirectoryError(
            f"{WHERE}: {place}: no member has a score for the role{'s' * (len(missing) > 1)} "
            f"{' and '.join(missing)}; expected at least one"
        )
    return [dict(zip(found, policies)) for policies in zip(*found.values())]


def continued(best: Sequence[Policies], settings: Settings, roles: Sequence[Role]) -> tuple[Policies, ...]:
    """Return one of these per member, in order; when they run out they are taken again, mutated.

    By the run's explorer, or the paper's where the run's only proposes.
    """
    search, space = settings.search, settings.search_space()
    explore = EXPLORERS.get(search.explorer, EXPLORERS["pba"])
    first: list[Policies] = list(best[: search.population_size])
    for member in range(len(first), search.population_size):
        rng = Random(f"{settings.seed}/initial/{member}")
        donor = best[member % len(best)]
        first.append(
            {
                role: explore(
                    donor[role],
                    space,
                    role,
                    rng,
                    resample_probability=search.resample_probability,
                    max_shift=search.max_shift_bins,
                )
                for role in roles
            }
        )
    return tuple(first)


def _ranked(population: Population) -> list[Policies]:
    """Return the newest policies of the members that scored, best first; ties go to the lower number."""
    if not population.scores:
        return []
    _, generation = population.best()
    scores = population.scores[generation]
    members = sorted((population.live & scores.keys()) or scores.keys())
    members.sort(key=scores.__getitem__, reverse=True)
    return [population.jobs[member, generation].policies for member in members]


def _whole(policy: Policy, space: SearchSpace, role: Role) -> Policy:
    """Return a schedule's policy with all slots, scalars and choices."""
    scalars = {scalar.name: policy.scalars.get(scalar.name, scalar.initial) for scalar in space.scalars_of(role)}
    choices = {choice.name: policy.choices.get(choice.name, choice.initial) for choice in space.choices_of(role)}
    return Policy(policy.completed(space).settings, scalars, choices)


def _check_space(theirs: SearchSpace, ours: SearchSpace, place: Place) -> None:
    other = list(_differences(theirs.to_dict(), ours.to_dict()))
    if len(other) > MOST_DIFFERENCES:
        other[MOST_DIFFERENCES:] = [f"and {len(other) - MOST_DIFFERENCES} more"]
    if other:
        raise SearchSpaceError(
            f"{WHERE}: {place}: space: {', '.join(other)} differ{'s' * (len(other) == 1)}; expected this run's space"
        )


def _differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> list[str]:
    """Return the keys at which two spaces differ, as `ops.rotate`; their names say nothing."""
    found = []
    for key in {**theirs, **ours}:
        one, other = theirs.get(key), ours.get(key)
        if key in ("ops", "scalars", "choices"):
            one, other = one or {}, other or {}
            assert isinstance(one, Mapping) and isinstance(other, Mapping)
            found += [f"{key}.{name}" for name in {**one, **other} if one.get(name) != other.get(name)]
            if key == "ops" and list(one) != list(other) and one == other:
                found.append("the order of ops")
        elif one != other and key != "name":
            found.append(key)
    return found
