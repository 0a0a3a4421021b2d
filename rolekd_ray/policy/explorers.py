"""Explorers by name: how a recipient's policies come about once it has copied a donor.

`pba` and `factor` mutate the donor's policies here. The policies of `PROPOSED` ones come from outside the rule, as
`propose` records of the log; see `policy.population`.
"""

import random
from typing import Protocol

from rolekd_ray.policy.explore import explore, mutated
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role


class Explorer(Protocol):
    """Returns a mutated copy of one role's policy; see `explore`."""

    def __call__(
        self,
        policy: Policy,
        space: SearchSpace,
        role: Role,
        rng: random.Random,
        *,
        resample_probability: float,
        max_shift: int,
    ) -> Policy:
        """Draw from `rng` alone."""
        ...


def explore_by_factor(
    policy: Policy,
    space: SearchSpace,
    role: Role,
    rng: random.Random,
    *,
    resample_probability: float = 0.2,
    max_shift: int = 0,
) -> Policy:
    """Return a mutated copy of one role's policy: every bin is multiplied by 0.8 or 1.2, each independently.

    With chance `resample_probability` a bin is redrawn uniformly from its grid. Otherwise it is multiplied by one of
    the factors, equally often, and rounded away from where it was, so that it moves at least one bin (0 goes up to 1);
    it stops at the ends of the grid. A step is thus as large as the bin it starts from, where `explore` steps up to
    `max_shift` bins anywhere. Scalars and choices follow their own rules.

    Args:
        policy: the donor's; left untouched.
        space: supplies the grids and the rules of scalars and choices.
        role: whose scalars and choices these are.
        rng: the only source of randomness.
        resample_probability: per bin, in [0, 1].
        max_shift: not used.

    Source: what Ray Tune's PopulationBasedTraining does to a number by default (times 1.2 or 0.8, or resampled). There
        numbers are continuous and may leave their range; rounding and clipping are ours.
    """

    def moved(value: int, bins: int) -> int:
        if rng.random() < resample_probability:
            return rng.randrange(bins)
        up = max((6 * value + 4) // 5, value + 1)  # in whole numbers: 15 * 1.2 is no 18.0 everywhere
        return min(up, bins - 1) if rng.random() < 0.5 else 4 * value // 5

    return mutated(policy, space, role, rng, moved)


EXPLORERS: dict[str, Explorer] = {"pba": explore, "factor": explore_by_factor}
"""Those that mutate the donor's policies by themselves."""

PROPOSED = ("optuna",)
"""Those whose policies are proposed from outside the rule."""

SAMPLERS = ("tpe", "gp")
"""Optuna's, for `optuna`."""
