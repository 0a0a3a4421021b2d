"""What the tests of the population rule share: rules of every shape, generations, truncation selection by hand."""

from fractions import Fraction

from hypothesis import strategies as st
from made_searches import BOTH, made_rule

from rolekd_ray.roles import Role

rules = st.builds(
    made_rule,
    seed=st.integers(0, 2**31),
    population_size=st.integers(2, 12),
    epochs=st.integers(1, 14),
    interval_epochs=st.integers(1, 5),
    quantile=st.integers(1, 50).map(lambda percent: percent / 100),
    synchronous=st.booleans(),
    initial=st.sampled_from(["zero", "random"]),
    roles=st.sampled_from([BOTH, (Role.TEACHER,), (Role.STUDENT,)]),
)


def play_generation(life, scores):
    """Report one generation, members in the order of `scores`."""
    found = []
    for member, score in scores.items():
        found += life.score(life.population.ask(member), score)
    return found


def selected(scores: dict[int, float], percent: int, rounding) -> tuple[set[int], set[int]]:
    """The worst and the best members, by exact fractions."""
    order = sorted(scores, key=lambda member: scores[member])
    count = min(rounding(Fraction(percent, 100) * len(order)), len(order) // 2)
    return set(order[:count]), set(reversed(order[len(order) - count :]))
