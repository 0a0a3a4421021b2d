"""Policies of roles as points of a box, for who samples boxes: one named dimension per thing that can be chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

from rolekd_ray.policy.jobs import Policies
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role

Point = Mapping[str, int | float | str]
"""Values by the names of dimensions."""


@dataclass(frozen=True, slots=True)
class Bins:
    """A place on a grid: 0..`bins` - 1."""

    name: str
    bins: int

    def at(self, share: float) -> int:
        """Return the bin at a share of the grid, in [0, 1)."""
        return min(int(share * self.bins), self.bins - 1)


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two bounds, both included; `log`: spread evenly in its logarithm."""

    name: str
    low: float
    high: float
    log: bool

    def at(self, share: float) -> float:
        """Return the number at a share of the range, in [0, 1)."""
        if self.log:
            return min(max(exp(log(self.low) + share * (log(self.high) - log(self.low))), self.low), self.high)
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Category:
    """One of `values`, which have no order."""

    name: str
    values: tuple[str, ...]

    def at(self, share: float) -> str:
        """Return the value at a share of the list, in [0, 1)."""
        return self.values[min(int(share * len(self.values)), len(self.values) - 1)]


Dimension = Bins | Range | Category


def dimensions(space: SearchSpace, roles: Sequence[Role]) -> tuple[Dimension, ...]:
    """Return everything that the policies of these roles choose, in order.

    An op without strength has no dimension for it: its magnitude bin changes no view.
    """
    found: list[Dimension] = []
    for role in roles:
        for place, op in enumerate(space.slots()):
            found.append(Bins(_name(role, place, op, "probability"), space.probability_bins))
            if space.op(op).magnitudes is not None:
                found.append(Bins(_name(role, place, op, "magnitude"), space.magnitude_bins))
        found += [Range(_of_role(role, s.name), s.low, s.high, s.log) for s in space.scalars_of(role)]
        found += [Category(_of_role(role, choice.name), choice.values) for choice in space.choices_of(role)]
    return tuple(found)


def point_of(policies: Policies, space: SearchSpace) -> dict[str, int | float | str]:
    """Return the point of complete policies."""
    point: dict[str, int | float | str] = {}
    for role, policy in policies.items():
        for place, setting in enumerate(policy.completed(space).settings):
            point[_name(role, place, setting.op, "probability")] = setting.probability_bin
            if space.op(setting.op).magnitudes is not None:
                point[_name(role, place, setting.op, "magnitude")] = setting.magnitude_bin
        for scalar in space.scalars_of(role):
            point[_of_role(role, scalar.name)] = policy.scalars.get(scalar.name, scalar.initial)
        for choice in space.choices_of(role):
            point[_of_role(role, choice.name)] = policy.choices.get(choice.name, choice.initial)
    return point


def policies_at(point: Point, space: SearchSpace, roles: Sequence[Role]) -> dict[Role, Policy]:
    """Return the policies at a point; ops without strength get magnitude bin 0."""
    return {
        role: Policy(
            tuple(
                OpSetting(
                    op,
                    int(point[_name(role, place, op, "probability")]),
                    int(point.get(_name(role, place, op, "magnitude"), 0)),
                )
                for place, op in enumerate(space.slots())
            ),
            {scalar.name: float(point[_of_role(role, scalar.name)]) for scalar in space.scalars_of(role)},
            {choice.name: str(point[_of_role(role, choice.name)]) for choice in space.choices_of(role)},
        )
        for role in roles
    }


def check_policies(policies: Policies, space: SearchSpace, roles: Sequence[Role]) -> None:
    """Check policies that came from outside: these roles, every slot of the space in order, nothing out of range.

    Raises:
        ValueError: with the first thing that does not fit.
    """
    if set(policies) != set(roles):
        raise ValueError(f"roles: got {', '.join(map(str, policies)) or 'none'}; expected {', '.join(roles)}")
    for role, policy in policies.items():
        if [setting.op for setting in policy.settings] != space.slots():
            raise ValueError(f"{role}.policy: got other ops than the space's, or in another order")
        for op, probability, magnitude in ((s.op, s.probability_bin, s.magnitude_bin) for s in policy.settings):
            if not (0 <= probability < space.probability_bins and 0 <= magnitude < space.magnitude_bins):
                raise ValueError(f"{role}.{op}: got bins {probability} and {magnitude}; expected them on the grids")
        scalars = {scalar.name: scalar for scalar in space.scalars_of(role)}
        choices = {choice.name: choice.values for choice in space.choices_of(role)}
        if policy.scalars.keys() != scalars.keys() or policy.choices.keys() != choices.keys():
            got, expected = [*policy.scalars, *policy.choices], [*scalars, *choices]
            raise ValueError(f"{role}: got {got} beside the ops; expected {expected}")
        for name, value in policy.scalars.items():
            low, high = scalars[name].low, scalars[name].high
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{role}.{name}: got {value!r}; expected a number in [{low:g}, {high:g}]")
        for name, text in policy.choices.items():
            if text not in choices[name]:
                raise ValueError(f"{role}.{name}: got {text!r}; expected one of {', '.join(choices[name])}")


def _name(role: Role, place: int, op: str, what: str) -> str:
    return f"{role}/{place}/{op}/{what}"


def _of_role(role: Role, name: str) -> str:
    return f"{role}/{name}"
