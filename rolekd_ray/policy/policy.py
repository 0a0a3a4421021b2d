"""A policy: the op settings, evolved scalars and choices of one role at one time."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import exp, log
from typing import Any

from rolekd_ray.errors import unknown_name
from rolekd_ray.policy.space import ScalarSpec, SearchSpace
from rolekd_ray.roles import Role


@dataclass(frozen=True, slots=True)
class OpSetting:
    """One op with its chance and strength, both as bins of the space's grids."""

    op: str
    probability_bin: int
    magnitude_bin: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Op settings, in order, and scalars and choices by name.

    A setting with probability bin 0 never fires and never changes a view, but keeps its place: a mutation may wake
    it. An op may stand more than once (copies). `choices["agents"]` is the role's chain as text.
    """

    settings: tuple[OpSetting, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)

    def firing(self) -> tuple[OpSetting, ...]:
        """Return the settings that can fire."""
        return tuple(setting for setting in self.settings if setting.probability_bin > 0)

    def completed(self, space: SearchSpace) -> "Policy":
        """Return the policy with every slot of the space, missing ones at probability and magnitude bin 0.

        The k-th setting of an op goes to its k-th copy. Scalars and choices are kept.
        """
        waiting = list(self.settings)
        full = []
        for op in space.slots():
            found = next((setting for setting in waiting if setting.op == op), None)
            if found is not None:
                waiting.remove(found)
            full.append(found or OpSetting(op, 0, 0))
        assert not waiting, f"policy does not fit the space: {waiting}"
        return replace(self, settings=tuple(full))


def zero_policy(space: SearchSpace, role: Role) -> Policy:
    """Return the paper's first policy: no op can fire, every scalar and choice at its initial value.

    Source: PBA's code (`search.py`): all 60 integers start at 0.
    """
    return Policy(
        tuple(OpSetting(op, 0, 0) for op in space.slots()),
        {scalar.name: scalar.initial for scalar in space.scalars_of(role)},
        {choice.name: choice.initial for choice in space.choices_of(role)},
    )


def random_policy(space: SearchSpace, role: Role, rng: random.Random) -> Policy:
    """Return a policy drawn uniformly from the grids, scalars from their ranges, choices from their lists."""
    settings = tuple(
        OpSetting(op, rng.randrange(space.probability_bins), rng.randrange(space.magnitude_bins))
        for op in space.slots()
    )
    scalars = {scalar.name: draw_scalar(scalar, rng) for scalar in space.scalars_of(role)}
    # Last: spaces without choices draw what they drew before there were any
    return Policy(settings, scalars, {choice.name: rng.choice(choice.values) for choice in space.choices_of(role)})


def draw_scalar(scalar: ScalarSpec, rng: random.Random) -> float:
    """Return a value uniform in the scalar's range, log-uniform if it says so."""
    if scalar.log:
        return min(max(exp(rng.uniform(log(scalar.low), log(scalar.high))), scalar.low), scalar.high)
    return rng.uniform(scalar.low, scalar.high)


def policy_to_list(policy: Policy, space: SearchSpace, *, firing_only: bool) -> list[dict[str, Any]]:
    """Return the settings in file form: `{op, probability, magnitude_bin}` each."""
    return [
        {
            "op": setting.op,
            "probability": round(space.probability(setting.probability_bin), 10),
            "magnitude_bin": setting.magnitude_bin,
        }
        for setting in (policy.firing() if firing_only else policy.settings)
    ]


def policy_from_list(data: object, space: SearchSpace, where: str, problems: list[str]) -> tuple[OpSetting, ...]:
    """Read settings from file form; adds to `problems` what does not fit the space and leaves it out."""
    if not isinstance(data, list):
        problems.append(f"{where}: got {data!r}; expected a list of {{op, probability, magnitude_bin}}")
        return ()
    settings = [_setting_from_dict(row, space, f"{where}[{i}]", problems) for i, row in enumerate(data)]
    for op in space.ops:
        times = sum(setting is not None and setting.op == op.name for setting in settings)
        if times > space.copies:
            problems.append(f"{where}: op {op.name!r} stands {times} times; expected at most {space.copies} (copies)")
    return tuple(setting for setting in settings if setting is not None)


def _setting_from_dict(row: object, space: SearchSpace, where: str, problems: list[str]) -> OpSetting | None:
    keys = ("op", "probability", "magnitude_bin")
    if not isinstance(row, Mapping) or set(row) != set(keys):
        problems.append(f"{where}: got {row!r}; expected the keys {', '.join(keys)}")
        return None
    op, probability, magnitude_bin = (row[key] for key in keys)
    found = len(problems)
    if op not in space:
        problems.append(unknown_name(where, "op", op, [spec.name for spec in space.ops]))
    top = space.probability_bins - 1
    if not isinstance(probability, int | float) or isinstance(probability, bool) or not 0 <= probability <= 1:
        problems.append(f"{where}.probability: got {probability!r}; expected a number in [0, 1]")
    elif abs(probability * top - round(probability * top)) > 1e-6:
        problems.append(f"{where}.probability: got {probability!r}; expected a multiple of 1/{top}")
    if type(magnitude_bin) is not int or not 0 <= magnitude_bin < space.magnitude_bins:
        problems.append(
            f"{where}.magnitude_bin: got {magnitude_bin!r}; expected a whole number in 0..{space.magnitude_bins - 1}"
        )
    return None if len(problems) > found else OpSetting(op, round(probability * top), magnitude_bin)
