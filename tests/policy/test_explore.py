"""The mutation rule: against its exact transition probabilities, and against the 279 published mutations."""

import copy
import json
import random
from collections import Counter
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import policies, scalar_specs, spaces
from scipy import stats

from rolekd_ray.policy.explore import explore, explore_scalar
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy, zero_policy
from rolekd_ray.policy.space import ScalarSpec, load_space
from rolekd_ray.roles import Role

PBA = load_space("cifar10_pba")
GRIDS = {"probability": PBA.probability_bins, "magnitude": PBA.magnitude_bins}
ALPHA = 1e-4  # of each chi-square test: with fixed seeds a right rule passes always or never


def transitions(bins: int, start: int, resample=Fraction(1, 5), max_shift: int = 3) -> list[Fraction]:
    """Enumerate PBA's Algorithm 1: redraw, or shift by 0..max_shift in either direction and clip."""
    chances = [resample / bins] * bins
    for shift in range(max_shift + 1):
        for sign in (-1, 1):
            chances[min(bins - 1, max(0, start + sign * shift))] += (1 - resample) / (2 * (max_shift + 1))
    assert sum(chances) == 1
    return chances


def chi_square(counts: Counter, chances: list[Fraction]) -> float:
    """Return the p-value of counts under chances; an impossible bin that was seen gives 0."""
    if any(counts[i] for i, chance in enumerate(chances) if chance == 0):
        return 0.0
    possible = [i for i, chance in enumerate(chances) if chance > 0]
    total = sum(counts.values())
    observed = [counts[i] for i in possible]
    return stats.chisquare(observed, [float(chances[i] * total) for i in possible]).pvalue


def mutations_from(probability_bin: int, magnitude_bin: int, times: int, seed: int, **settings) -> list[OpSetting]:
    donor = Policy(tuple(OpSetting(op, probability_bin, magnitude_bin) for op in PBA.slots()))
    rng = Random(seed)
    return [s for _ in range(times) for s in explore(donor, PBA, Role.STUDENT, rng, **settings).settings]


@pytest.mark.parametrize("grid, start", [(grid, start) for grid, bins in GRIDS.items() for start in range(bins)])
def test_every_bin_of_both_grids_moves_as_specified(grid, start):
    mutated = mutations_from(start if grid == "probability" else 5, start if grid == "magnitude" else 5, 400, start)
    counts = Counter(getattr(s, f"{grid}_bin") for s in mutated)
    assert sum(counts.values()) == 12_000
    assert chi_square(counts, transitions(GRIDS[grid], start)) > ALPHA


@pytest.mark.parametrize(
    "resample, max_shift",
    [(Fraction(0), 3), (Fraction(1), 3), (Fraction(1, 2), 1), (Fraction(1, 5), 0), (Fraction(1, 5), 12)],
)
@pytest.mark.parametrize("start", [0, 4, 10])
def test_the_rules_settings_are_obeyed(start, resample, max_shift):
    mutated = mutations_from(start, 5, 200, 1, resample_probability=float(resample), max_shift=max_shift)
    counts = Counter(s.probability_bin for s in mutated)
    assert chi_square(counts, transitions(11, start, resample, max_shift)) > ALPHA


def test_bins_mutate_independently_of_each_other():
    donor = Policy(tuple(OpSetting(op, 5, 5) for op in PBA.slots()))
    rng = Random(3)
    mutated = [explore(donor, PBA, Role.STUDENT, rng).settings for _ in range(4000)]
    moved = {
        "probability and magnitude of a setting": [(a.probability_bin, a.magnitude_bin) for a, *_ in mutated],
        "neighbouring settings": [(a.probability_bin, b.probability_bin) for a, b, *_ in mutated],
        "two copies of an op": [(s[0].magnitude_bin, s[15].magnitude_bin) for s in mutated],
    }
    for what, pairs in moved.items():
        table = [[0] * 3 for _ in range(3)]  # fell, stayed, rose
        for pair in pairs:
            fell_or_rose = [(value > 5) - (value < 5) + 1 for value in pair]
            table[fell_or_rose[0]][fell_or_rose[1]] += 1
        assert stats.chi2_contingency(table).pvalue > ALPHA, what


@pytest.mark.parametrize("start", [(0, 0), (5, 5), (10, 9)])
def test_the_share_that_stays_put(start):
    """0.519 at the ends of the grids, 0.219 inside: an end absorbs every shift outwards."""
    exact = sum(transitions(bins, at)[at] for bins, at in zip((11, 10), start)) / 2
    assert float(exact) == pytest.approx(0.2191 if start == (5, 5) else 0.5191, abs=1e-4)
    mutated = mutations_from(*start, 1000, 11)
    stayed = sum((s.probability_bin == start[0]) + (s.magnitude_bin == start[1]) for s in mutated) / 60_000
    assert stayed == pytest.approx(float(exact), abs=4 * (0.25 / 60_000) ** 0.5)  # 4 standard errors


@pytest.fixture(scope="module")
def published(shared_data) -> list[tuple[list[int], list[int]]]:
    """The 279 published mutations: the donor's 60 bins and the recipient's."""
    log = shared_data / "published" / "role_kd_cifar100_resnet18_2bit" / "pbt_global.txt"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [(row[4]["hp_policy"], row[5]["hp_policy"]) for row in rows]


def mutated_by_us(vector: list[int], rng: Random) -> list[int]:
    settings = tuple(OpSetting(op, vector[2 * k], vector[2 * k + 1]) for k, op in enumerate(PBA.slots()))
    mutated = explore(Policy(settings), PBA, Role.STUDENT, rng).settings
    return [number for s in mutated for number in (s.probability_bin, s.magnitude_bin)]


@pytest.mark.parametrize("source", ["published", "ours"])
def test_published_and_our_mutations_follow_one_specification(published, source):
    rng = Random(5)
    pairs = published if source == "published" else [(old, mutated_by_us(old, rng)) for old, _ in published]
    assert len(pairs) == 279
    seen: dict[tuple[int, int], Counter] = {}
    for old, new in pairs:
        for i, (before, after) in enumerate(zip(old, new)):
            seen.setdefault((11 - i % 2, before), Counter())[after] += 1
    # One statistic over all start bins: 16 740 transitions. Cells are expected at least 5 times, or pooled.
    statistic, freedom = 0.0, 0
    for (bins, start), counts in seen.items():
        expected = [float(chance) * sum(counts.values()) for chance in transitions(bins, start)]
        rare = [end for end in range(bins) if expected[end] < 5]
        cells = [(counts[end], expected[end]) for end in range(bins) if end not in rare]
        cells.append((sum(counts[end] for end in rare), sum(expected[end] for end in rare)))
        cells = [cell for cell in cells if cell[1] >= 5]
        statistic += sum((got - due) ** 2 / due for got, due in cells)
        freedom += max(len(cells) - 1, 0)
    assert freedom > 150
    assert stats.chi2.sf(statistic, freedom) > ALPHA

    exact = sum(transitions(11 - i % 2, v)[v] for old, _ in pairs for i, v in enumerate(old)) / (60 * len(pairs))
    stayed = sum(a == b for old, new in pairs for a, b in zip(old, new)) / (60 * len(pairs))
    assert float(exact) == pytest.approx(0.329, abs=0.0005)
    assert stayed == pytest.approx(float(exact), abs=4 * (0.329 * 0.671 / 16_740) ** 0.5)


@given(st.data())
def test_a_mutation_fits_its_space_and_leaves_the_donor_alone(data):
    space = data.draw(spaces())
    role = data.draw(st.sampled_from(Role))
    donor = data.draw(policies(space, role))
    before = copy.deepcopy(donor)
    mutated = explore(donor, space, role, Random(data.draw(st.integers(0, 2**32))), max_shift=space.magnitude_bins)
    assert donor == before
    assert [s.op for s in mutated.settings] == space.slots()
    assert all(0 <= s.probability_bin < space.probability_bins for s in mutated.settings)
    assert all(0 <= s.magnitude_bin < space.magnitude_bins for s in mutated.settings)
    specs = {scalar.name: scalar for scalar in space.scalars_of(role)}
    assert set(mutated.scalars) == set(specs)
    assert all(specs[name].low <= value <= specs[name].high for name, value in mutated.scalars.items())


def test_missing_slots_and_scalars_start_from_their_first_value():
    scalar = ScalarSpec("t", Role.STUDENT, 4.0, 1.0, 10.0, factors=(1.0,), resample_probability=0.0)
    space = type(PBA)("s", PBA.ops, scalars=(scalar,))
    mutated = explore(Policy(), space, Role.STUDENT, Random(0), resample_probability=0, max_shift=0)
    assert mutated == zero_policy(space, Role.STUDENT)
    assert explore(Policy(), space, Role.TEACHER, Random(0)).scalars == {}, "a scalar evolves with its own role"


@given(scalar_specs(), st.floats(0, 1), st.integers(0, 2**32))
def test_scalars_never_leave_their_range(scalar, share, seed):
    value = scalar.low + share * (scalar.high - scalar.low)
    rng = Random(seed)
    for _ in range(20):
        value = explore_scalar(value, scalar, rng)
        assert scalar.low <= value <= scalar.high


def test_scalars_are_multiplied_or_redrawn():
    scalar = ScalarSpec("t", Role.STUDENT, 4.0, 1.0, 10.0, factors=(0.8, 1.2), resample_probability=0.25)
    rng = Random(2)
    values = Counter(explore_scalar(4.0, scalar, rng) for _ in range(4000))
    down, up = values.pop(4.0 * 0.8), values.pop(4.0 * 1.2)
    redrawn = sum(values.values())
    assert stats.chisquare([down, up, redrawn], [1500, 1500, 1000]).pvalue > ALPHA
    uniform = stats.uniform(1.0, 9.0)
    assert stats.kstest(list(values), uniform.cdf).pvalue > ALPHA
    never = ScalarSpec("t", Role.STUDENT, 4.0, 1.0, 10.0, resample_probability=0.0)
    assert explore_scalar(9.9, never, Random(1)) in (9.9 * 0.8, 10.0), "clipped, not wrapped or redrawn"


def test_the_same_seed_gives_the_same_mutation_and_the_global_generator_is_left_alone():
    donor = random_policy(PBA, Role.STUDENT, Random(0))
    random.seed(123)
    state = random.getstate()
    first, again = (explore(donor, PBA, Role.STUDENT, Random(9)) for _ in range(2))
    assert random.getstate() == state
    random.seed(456)
    assert explore(donor, PBA, Role.STUDENT, Random(9)) == first == again
    assert explore(donor, PBA, Role.STUDENT, Random(10)) != first
