"""How a copied policy mutates."""

import random
from collections.abc import Callable

from rolekd_ray.policy.policy import OpSetting, Policy, draw_scalar
from rolekd_ray.policy.space import ChoiceSpec, ScalarSpec, SearchSpace
from rolekd_ray.roles import Role


def explore(
    policy: Policy,
    space: SearchSpace,
    role: Role,
    rng: random.Random,
    *,
    resample_probability: float = 0.2,
    max_shift: int = 3,
) -> Policy:
    """Return a mutated copy of one role's policy: every bin, scalar and choice changes independently.

    With chance `resample_probability` a bin is redrawn uniformly from its grid. Otherwise it moves 0..`max_shift`
    bins, up or down equally often, and stops at the ends of the grid. Ops and their order never change. Scalars
    and choices follow their own rules (`ScalarSpec`, `ChoiceSpec`) and never leave their range or list.

    Args:
        policy: the donor's; left untouched. Slots of the space that it lacks are filled with zeros first.
        space: supplies the grids and the rules of scalars and choices.
        role: whose scalars and choices these are.
        rng: the only source of randomness.
        resample_probability: per bin, in [0, 1]. 1 is random search, 0 a local walk.
        max_shift: in bins, at least 0. Both grids share it, so it is coarser on the smaller one.

    Source: Ho et al. 2019 (arXiv:1905.05393), Algorithm 1, and its released code (`explore_cifar10`), which the
        role-wise paper's code uses unchanged. The rule for scalars is Ray Tune's (factor or resample), clipped; the
        one for choices is ours.
    """

    def shifted(value: int, bins: int) -> int:
        if rng.random() < resample_probability:
            return rng.randrange(bins)
        shift = rng.randint(0, max_shift)
        return min(max(value + (shift if rng.random() < 0.5 else -shift), 0), bins - 1)

    return mutated(policy, space, role, rng, shifted)


def mutated(
    policy: Policy, space: SearchSpace, role: Role, rng: random.Random, move: Callable[[int, int], int]
) -> Policy:
    """Return a copy whose bins went through `move(bin, bins)`, in order; scalars and choices by their own rules."""
    settings = tuple(
        OpSetting(
            setting.op,
            move(setting.probability_bin, space.probability_bins),
            move(setting.magnitude_bin, space.magnitude_bins),
        )
        for setting in policy.completed(space).settings
    )
    scalars = {
        scalar.name: explore_scalar(policy.scalars.get(scalar.name, scalar.initial), scalar, rng)
        for scalar in space.scalars_of(role)
    }
    choices = {  # last: spaces without choices draw what they drew before there were any
        choice.name: explore_choice(policy.choices.get(choice.name, choice.initial), choice, rng)
        for choice in space.choices_of(role)
    }
    return Policy(settings, scalars, choices)


def explore_scalar(value: float, scalar: ScalarSpec, rng: random.Random) -> float:
    """Return a mutated value inside the scalar's range: redrawn, or multiplied by one of its factors."""
    if rng.random() < scalar.resample_probability:
        return draw_scalar(scalar, rng)
    return min(max(value * rng.choice(scalar.factors), scalar.low), scalar.high)


def explore_choice(value: str, choice: ChoiceSpec, rng: random.Random) -> str:
    """Return a choice's value: redrawn uniformly, the old one included, or as it was; categories have no neighbours."""
    return rng.choice(choice.values) if rng.random() < choice.resample_probability else value
