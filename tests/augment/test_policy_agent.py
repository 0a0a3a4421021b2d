"""The policy agent: its views are pure, and its ops follow PBA's rule."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.stats import chi2

from rolekd_ray.augment.ops import OPS
from rolekd_ray.augment.policy_agent import PolicyAgent, sample_ops
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy, zero_policy
from rolekd_ray.policy.space import OP_UNITS, OpSpec, SearchSpace, load_space
from rolekd_ray.roles import Role

SPACE = load_space("cifar10_pba")
NAMES = list(OP_UNITS)
AT = {"seed": 5, "role": Role.STUDENT, "epoch": 3}
FILL = torch.tensor([125, 123, 114], dtype=torch.uint8)


def images(count: int, shape: tuple[int, ...] = (3, 32, 32)) -> torch.Tensor:
    coarse = torch.rand(count, shape[0], 4, 4, generator=torch.manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    return smooth.mul(255).byte()


def agent(policy: Policy, space: SearchSpace = SPACE, channels: int = 3) -> PolicyAgent:
    return PolicyAgent([(1.0, policy)], space, FILL[:channels])


def space_of(counts: tuple[float, ...], copies: int = 2) -> SearchSpace:
    return SearchSpace("test", SPACE.ops, copies=copies, counts=counts)


def some_policy(seed: int, space: SearchSpace = SPACE) -> Policy:
    return random_policy(space, Role.STUDENT, random.Random(seed))


# Purity


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 9, 5)])
def test_batch_composition_and_order_change_no_bit(shape):
    made, indices = images(96, shape), torch.arange(96) * 7
    view = agent(some_policy(1), channels=shape[0])
    whole = view(made, indices, **AT)
    assert whole.dtype == torch.uint8 and whole.shape == made.shape
    assert not torch.equal(whole, made)
    shuffled = torch.randperm(96, generator=torch.manual_seed(1))
    assert torch.equal(view(made[shuffled], indices[shuffled], **AT), whole[shuffled])
    for size in (1, 5, 64):
        parts = [view(m, i, **AT) for m, i in zip(made.split(size), indices.split(size))]
        assert torch.equal(torch.cat(parts), whole)
    assert view(made[:0], indices[:0], **AT).shape == (0, *shape)


def test_a_view_does_not_depend_on_what_was_asked_before():
    made, indices, policy = images(64), torch.arange(64), some_policy(2)
    first, again = agent(policy), agent(policy)
    for epoch in range(3):
        first(made, indices, seed=5, role=Role.STUDENT, epoch=epoch)
    torch.manual_seed(1)
    random.seed(1)
    assert torch.equal(first(made, indices, **AT), again(made, indices, **AT))


@pytest.mark.parametrize("other", [{"seed": 6}, {"role": Role.TEACHER}, {"epoch": 4}])
def test_seed_role_and_epoch_each_change_the_view(other):
    made, indices, view = images(64), torch.arange(64), agent(some_policy(3))
    assert not torch.equal(view(made, indices, **AT), view(made, indices, **(AT | other)))


def test_the_input_is_not_written_to_and_the_view_may_be_saved_for_backward():
    made = images(64)
    before = made.clone()
    view = agent(some_policy(4))(made, torch.arange(64), **AT)
    assert torch.equal(made, before)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (view.float() * weight).sum().backward()
    assert weight.grad is not None and not view.is_inference()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), shuffle=st.integers(0, 999))
def test_a_policy_is_a_set(seed, shuffle):
    """Settings of probability 0 may come, go and move, and others change places, without changing a view."""
    policy = some_policy(seed)
    asleep = [OpSetting(s.op, 0, s.magnitude_bin) if i % 3 else s for i, s in enumerate(policy.settings)]
    reordered = list(asleep)
    random.Random(shuffle).shuffle(reordered)
    awake = tuple(s for s in asleep if s.probability_bin)
    made, indices = images(64, (3, 8, 8)), torch.arange(64)
    wanted = agent(Policy(tuple(asleep)))(made, indices, **AT)
    for same in (tuple(reordered), awake, (*awake, OpSetting("rotate", 0, 9))):
        assert torch.equal(agent(Policy(same))(made, indices, **AT), wanted)


def test_a_setting_keeps_its_draws_when_others_come():
    """Common random numbers: where both policies fire one op at most, a shared setting fires on the same images."""
    space = space_of((0.0, 1.0))
    alone = agent(Policy((OpSetting("invert", 3, 0),)), space)
    beside = agent(Policy((OpSetting("rotate", 3, 9), OpSetting("invert", 3, 0))), space)
    indices = torch.arange(2000)
    one, both = (sample_ops(a, indices, **AT)[0][:, 0] for a in (alone, beside))
    place = NAMES.index("invert")
    assert (one[both == place] == place).all()
    assert (both == place).sum() > 100


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_are_equal_on_cuda(photographs):
    indices = torch.arange(len(photographs))
    for seed in range(5):
        view = agent(some_policy(seed))
        cpu, cuda = view(photographs, indices, **AT), view(photographs.cuda(), indices.cuda(), **AT)
        assert torch.equal(cpu, cuda.cpu())


# What is applied


@pytest.mark.parametrize("counts", [(0.2, 0.3, 0.5), (0.0, 0.0, 0.0, 0.0, 1.0)])
def test_a_view_is_its_ops_one_after_the_other(counts):
    """Each image alone, through `OPS`, in the order `sample_ops` reports; without cutout, whose centre it does not."""
    space = space_of(counts)
    policy = Policy(tuple(s for s in some_policy(5, space).settings if s.op != "cutout"))
    made, indices = images(200), torch.arange(200)
    views = agent(policy, space)(made, indices, **AT)
    for n, rows in enumerate(zip(*(t.tolist() for t in sample_ops(agent(policy, space), indices, **AT)))):
        image = made[n : n + 1]
        for op, magnitude_bin, sign in zip(*rows):
            if op >= 0:
                magnitude = sign * (space.magnitude(NAMES[op], magnitude_bin) or 0)
                image = OPS[NAMES[op]](image, torch.tensor([magnitude], dtype=torch.float64), torch.zeros(1, 2), FILL)
        assert torch.equal(image[0], views[n]), (n, rows)


@pytest.mark.parametrize("op", [op for op in NAMES if op != "cutout"])
def test_every_magnitude_of_every_op_is_applied(op):
    """Also those that come out as nothing, which the agent skips."""
    made, indices, space = images(12, (3, 16, 16)), torch.arange(12), space_of((0.0, 1.0))
    for magnitude_bin in range(space.magnitude_bins):
        single = agent(Policy((OpSetting(op, 10, magnitude_bin),)), space)
        signs = sample_ops(single, indices, **AT)[2][:, 0]
        magnitudes = signs.double() * (space.magnitude(op, magnitude_bin) or 0.0)
        assert torch.equal(single(made, indices, **AT), OPS[op](made, magnitudes, torch.zeros(12, 2), FILL))


def test_cutout_squares_fall_anywhere():
    space = space_of((0.0, 1.0))
    white = torch.full((4000, 1, 8, 8), 255, dtype=torch.uint8)
    policy = Policy((OpSetting("cutout", 10, 1),))  # a side of 2 pixels
    black = agent(policy, space, 1)(white, torch.arange(4000), **AT) != 255
    hits = black[:, 0].double().sum(0)
    # Pixel (y, x) is hit by centres y, y + 1 times x, x + 1; the last row and column by one centre less.
    chance = torch.full((8,), 2 / 8, dtype=torch.float64)
    chance[7] = 1 / 8
    expected = 4000 * chance[:, None] * chance
    assert ((hits - expected).abs() < 4.5 * expected.sqrt()).all()


@pytest.mark.parametrize("policy", [Policy(), zero_policy(SPACE, Role.STUDENT)])
def test_a_policy_that_cannot_fire_is_the_identity(policy):
    made = images(32)
    assert torch.equal(agent(policy)(made, torch.arange(32), **AT), made)
    assert (sample_ops(agent(policy), torch.arange(32), **AT)[0] == -1).all()


def test_an_op_without_effect_uses_up_the_count():
    """Source: PBA; `rotate` by 0 degrees fires as often as any other op."""
    space = space_of((0.0, 1.0))
    policy = Policy((OpSetting("rotate", 10, 0), OpSetting("invert", 10, 0)))
    made, indices = images(2000, (1, 4, 4)), torch.arange(2000)
    same = (agent(policy, space, 1)(made, indices, **AT) == made).flatten(1).all(1)
    assert abs(same.double().mean() - 0.5) < 4 * 0.5 / 2000**0.5


def test_every_setting_fires_when_the_count_allows():
    space = space_of((*(0.0,) * 30, 1.0))
    policy = Policy(tuple(OpSetting(op, 10, 1) for op in space.slots()))
    ops, _, _ = sample_ops(agent(policy, space), torch.arange(50), **AT)
    assert ops.shape == (50, 30)
    assert (ops.sort(dim=1).values == torch.arange(15).repeat_interleave(2)).all()
    assert agent(policy, space)(images(50), torch.arange(50), **AT).shape == (50, 3, 32, 32)


def test_few_settings_and_a_large_count():
    space = space_of((0.0, 0.0, 0.0, 1.0))
    ops, _, _ = sample_ops(agent(Policy((OpSetting("invert", 10, 0),)), space), torch.arange(10), **AT)
    assert ops.tolist() == [[NAMES.index("invert")]] * 10


def test_more_copies_than_the_paper():
    space = SearchSpace("test", (OpSpec("invert"),), copies=5, counts=(*(0.0,) * 5, 1.0))
    policy = Policy((OpSetting("invert", 10, 0),) * 5)
    made = images(8)
    assert torch.equal(agent(policy, space)(made, torch.arange(8), **AT), ~made)  # five times


# The distribution, against PBA's rule worked out another way


def chances(probabilities: list[float], counts: tuple[float, ...]) -> dict[tuple[int, ...], float]:
    """Return the chance of each sequence of fired settings under a walk over a shuffled list, counts up to 2.

    In a shuffled list setting i stands at a uniform time t_i. It is the first to fire if it fires and no earlier one
    does: p_i ∫ Π (1 - p_j t) dt over the others. In the same way a pair, with ∫ t Π over the rest, and so on; walks
    that run out of settings have fired fewer.
    """
    everything = range(len(probabilities))

    def product(left_out: set[int]) -> Polynomial:
        result = Polynomial([1.0])
        for j in everything:
            if j not in left_out:
                result *= Polynomial([1.0, -probabilities[j]])
        return result

    def integral(p: Polynomial) -> float:
        return p.integ()(1.0) - p.integ()(0.0)

    none = product(set())(1.0)
    first = {i: probabilities[i] * integral(product({i})) for i in everything}
    pair = {
        (i, j): probabilities[i] * probabilities[j] * integral(product({i, j}) * Polynomial([0, 1.0]))
        for i, j in itertools.permutations(everything, 2)
    }
    only = {i: probabilities[i] * product({i})(1.0) for i in everything}
    zero, one, two = (*counts, 0.0, 0.0)[:3]
    result = {(): zero + (one + two) * none}
    result |= {(i,): one * first[i] + two * only[i] for i in everything}
    result |= {ij: two * chance for ij, chance in pair.items()}
    assert abs(sum(result.values()) - 1) < 1e-9
    return result


def walked(probabilities: list[float], counts: tuple[float, ...], rng: random.Random) -> tuple[int, ...]:
    """PBA's rule as its code walks it."""
    count, order, fired = rng.choices(range(len(counts)), counts)[0], list(range(len(probabilities))), []
    rng.shuffle(order)
    for i in order:
        if len(fired) == count:
            break
        if rng.random() < probabilities[i]:
            fired.append(i)
    return tuple(fired)


def misfit(observed: dict, expected: dict, total: int) -> tuple[float, int]:
    """Return chi-square and degrees of freedom; rare outcomes are pooled."""
    common = {k: e for k, e in expected.items() if e * total >= 5}
    assert all(k in expected for k in observed)
    statistic = sum((observed.get(k, 0) - e * total) ** 2 / (e * total) for k, e in common.items())
    rest = total * (1 - sum(common.values()))
    degrees = len(common) - 1
    if rest >= 5:
        seen = sum(n for k, n in observed.items() if k not in common)
        statistic, degrees = statistic + (seen - rest) ** 2 / rest, degrees + 1
    return statistic, degrees


def test_the_worked_out_chances_are_those_of_the_walk():
    probabilities, counts, rng = [1.0, 0.1, 0.5, 0.3], (0.2, 0.3, 0.5), random.Random(1)
    observed: dict[tuple[int, ...], int] = {}
    for _ in range(20_000):
        fired = walked(probabilities, counts, rng)
        observed[fired] = observed.get(fired, 0) + 1
    statistic, degrees = misfit(observed, chances(probabilities, counts), 20_000)
    assert statistic < chi2.isf(1e-4, degrees)


def slots_seen(policy: Policy, space: SearchSpace, total: int) -> dict[tuple[int, ...], int]:
    """Return how often each sequence of settings fires; settings are told apart by op and magnitude bin."""
    ops, bins, _ = sample_ops(agent(policy, space), torch.arange(total), **AT)
    place = {(NAMES.index(s.op), s.magnitude_bin): i for i, s in enumerate(policy.settings)}
    assert len(place) == len(policy.settings)
    codes = torch.where(ops >= 0, ops * 100 + bins, -1)
    sequences, counts = codes.unique(dim=0, return_counts=True)
    return {
        tuple(place[divmod(code, 100)] for code in row if code >= 0): n
        for row, n in zip(sequences.tolist(), counts.tolist())
    }


@pytest.mark.parametrize(
    ("bins", "counts"),
    [
        ([10, 1, 5, 3], (0.2, 0.3, 0.5)),
        ([2, 2, 2, 2, 2, 9], (0.0, 0.0, 1.0)),
        ([10, 10, 10], (0.0, 1.0)),
        ([1] * 15, (0.2, 0.3, 0.5)),
    ],
)
def test_ops_fire_as_the_rule_says(bins, counts):
    """200 000 images; fails by chance once in 10 000 for a new seed. Every second setting is a second copy."""
    space, total = space_of(counts), 200_000
    ops = [NAMES[i // 2] for i in range(len(bins))] if len(bins) < 15 else NAMES
    policy = Policy(tuple(OpSetting(op, b, i % 10) for i, (op, b) in enumerate(zip(ops, bins))))
    expected = chances([b / 10 for b in bins], counts)
    statistic, degrees = misfit(slots_seen(policy, space, total), expected, total)
    assert chi2.ppf(1e-4, degrees) < statistic < chi2.isf(1e-4, degrees)


def test_a_complete_random_policy_fires_as_the_rule_says():
    """30 settings, 60 000 images, the first op alone, beside none."""
    policy, total = some_policy(6), 60_000
    ops, bins, _ = sample_ops(agent(policy), torch.arange(total), **AT)
    sequences = chances([s.probability_bin / 10 for s in policy.settings], SPACE.counts)
    expected: dict[tuple[int, int], float] = {}
    for sequence, chance in sequences.items():
        first = policy.settings[sequence[0]] if sequence else None
        key = (NAMES.index(first.op), first.magnitude_bin) if first else (-1, 0)
        expected[key] = expected.get(key, 0) + chance
    codes, counts = torch.stack([ops[:, 0], bins[:, 0]], 1).unique(dim=0, return_counts=True)
    observed = {tuple(c): n for c, n in zip(codes.tolist(), counts.tolist())}
    statistic, degrees = misfit(observed, {k: e for k, e in expected.items() if e}, total)
    assert statistic < chi2.isf(1e-4, degrees)


def test_signs_are_fair_and_only_where_the_op_has_one():
    policy = Policy(tuple(OpSetting(op, 10, 3) for op in NAMES))
    ops, _, signs = sample_ops(agent(policy), torch.arange(60_000), **AT)
    assert set(signs.unique().tolist()) == {-1, 1}
    for place, op in enumerate(NAMES):
        mine = signs[ops == place]
        assert len(mine) > 2000
        if SPACE.op(op).signed:
            assert abs(mine.double().mean()) < 4 / len(mine) ** 0.5
        else:
            assert (mine == 1).all()
    assert (signs[ops == -1] == 1).all()
    both = ops.ge(0).all(1) & torch.stack([torch.isin(ops[:, k], torch.tensor([0, 1, 2, 8, 10])) for k in (0, 1)]).all(
        0
    )
    together = (signs[both, 0] * signs[both, 1]).double()
    assert abs(together.mean()) < 4 / len(together) ** 0.5


def test_flattened_policies_are_drawn_by_weight():
    space = space_of((0.0, 1.0))
    names = ("invert", "equalize", "auto_contrast")
    policies = [(weight, Policy((OpSetting(op, 10, 0),))) for weight, op in zip((1, 3, 6), names)]
    mixed = PolicyAgent(policies, space, FILL)
    ops = sample_ops(mixed, torch.arange(50_000), **AT)[0][:, 0]
    counts = torch.bincount(ops, minlength=15)[[NAMES.index(op) for op in names]].double()
    expected = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64) * 50_000
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-4, 2)


def test_equal_flattened_policies_are_the_policy():
    policy = some_policy(7)
    made, indices = images(64), torch.arange(64)
    one = agent(policy)(made, indices, **AT)
    assert torch.equal(PolicyAgent([(2, policy), (5, policy)], SPACE, FILL)(made, indices, **AT), one)
