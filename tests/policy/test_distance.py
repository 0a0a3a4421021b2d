"""The distance of two policies: against areas counted cell by cell, and as a metric."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import policies, spaces

from rolekd_ray.policy.distance import policy_distance
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy, zero_policy
from rolekd_ray.policy.space import load_space, parse_space
from rolekd_ray.roles import Role

SPACE = parse_space(
    {
        "copies": 1,
        "magnitude_bins": 5,
        "counts": {0: 0.5, 1: 0.5},
        "ops": {"rotate": {"range": [0, 8]}, "invert": {}, "posterize": {"values": [4, 4, 3, 2, 1]}},
    },
    where="f",
)
PBA = load_space("cifar10_pba")


def of(*settings):
    return Policy(tuple(OpSetting(*setting) for setting in settings))


def counted(a: Policy, b: Policy) -> float:
    """The areas between the slots of `SPACE`, by counting cells of a grid: 10 chances x 24 strengths."""
    cells = 0
    for op, widths in (
        ("rotate", [12, 15, 18, 21, 24]),
        ("invert", [24] * 5),
        ("posterize", [12, 12, 16, 20, 24]),
    ):
        covered = []
        for policy in (a, b):
            height, width = next((s.probability_bin, widths[s.magnitude_bin]) for s in policy.settings if s.op == op)
            covered.append({(i, j) for i in range(height) for j in range(width)})
        cells += len(covered[0] ^ covered[1])
    return cells / (3 * 10 * 24)


def test_the_distance_is_the_area_that_only_one_covers():
    rng = Random(0)
    for _ in range(100):
        a, b = (random_policy(SPACE, Role.STUDENT, rng) for _ in range(2))
        assert policy_distance(a, b, SPACE) == pytest.approx(counted(a, b), abs=1e-12)


def test_some_distances_by_hand():
    zero = zero_policy(SPACE, Role.STUDENT)
    assert policy_distance(zero, of(("rotate", 10, 4), ("invert", 10, 0), ("posterize", 10, 4)), SPACE) == 1.0
    assert policy_distance(zero, of(("rotate", 0, 4)), SPACE) == 0.0, "it cannot fire"
    assert policy_distance(zero, of(("invert", 3, 2)), SPACE) == pytest.approx(0.3 / 3)
    assert policy_distance(of(("invert", 3, 2)), of(("invert", 3, 4)), SPACE) == 0.0, "it has no strength"
    assert policy_distance(of(("posterize", 3, 0)), of(("posterize", 3, 1)), SPACE) == 0.0, "both keep 4 bits"
    assert policy_distance(of(("rotate", 6, 0)), of(("rotate", 6, 4)), SPACE) == pytest.approx(0.6 * 0.5 / 3)
    assert policy_distance(zero, of(("rotate", 10, 0)), SPACE) > 0, "the weakest bin is not the identity for every op"
    one, other = (("rotate", 2, 3), ("rotate", 7, 1)), (("rotate", 7, 1), ("rotate", 2, 3))
    assert policy_distance(of(*one), of(*other), PBA) == 0.0, "copies have no order"


def firing(policy, space):
    """What can fire, in the ops' units; the order of settings does not matter."""
    return Counter((s.op, s.probability_bin, space.magnitude(s.op, s.magnitude_bin)) for s in policy.firing())


@given(st.data())
def test_it_is_a_metric_on_what_can_fire(data):
    space = data.draw(spaces())
    a, b, c = (data.draw(policies(space, Role.STUDENT)) for _ in range(3))
    ab, ba, bc, ac = (policy_distance(*pair, space) for pair in ((a, b), (b, a), (b, c), (a, c)))
    assert 0 <= ab <= 1
    assert ab == ba
    assert ac <= ab + bc + 1e-12
    assert policy_distance(a, Policy(a.firing()[::-1]), space) == 0
    # Strengths a rounding error apart are one
    if firing(a, space) == firing(b, space):
        assert ab == 0
    elif min((abs(x - y) for op in space.ops for x, y in _pairs(op.magnitudes)), default=1) > 1e-6:
        assert ab > 0


def _pairs(magnitudes):
    return pairwise(sorted(set(magnitudes or ())))
