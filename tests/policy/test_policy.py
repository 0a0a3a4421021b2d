"""Policies: slots and copies, first draws, and the file form of settings."""

from collections import Counter
from math import log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import policies, scalar_specs, spaces
from scipy import stats

from rolekd_ray.policy.policy import (
    OpSetting,
    Policy,
    draw_scalar,
    policy_from_list,
    policy_to_list,
    random_policy,
    zero_policy,
)
from rolekd_ray.policy.space import ScalarSpec, load_space
from rolekd_ray.roles import Role

PBA = load_space("cifar10_pba")


def test_the_first_policy_is_sixty_zeros():
    policy = zero_policy(PBA, Role.STUDENT)
    assert [s.op for s in policy.settings] == PBA.slots()
    assert {(s.probability_bin, s.magnitude_bin) for s in policy.settings} == {(0, 0)}
    assert len(policy.settings) == 30 and policy.firing() == ()


def test_completed_gives_the_kth_setting_of_an_op_to_its_kth_copy():
    given_settings = (OpSetting("contrast", 1, 2), OpSetting("rotate", 3, 4), OpSetting("contrast", 5, 6))
    full = Policy(given_settings, {"t": 2.0}).completed(PBA)
    assert [s.op for s in full.settings] == PBA.slots()
    assert full.settings[14] == given_settings[0] and full.settings[29] == given_settings[2]
    assert full.settings[0] == given_settings[1]
    assert sum(s.probability_bin for s in full.settings) == 9 and full.scalars == {"t": 2.0}


def test_completed_refuses_what_has_no_slot():
    three = Policy((OpSetting("rotate", 1, 1),) * 3)
    with pytest.raises(AssertionError, match="rotate"):
        three.completed(PBA)


@given(st.data())
def test_completed_keeps_a_whole_policy_and_what_fires(data):
    space = data.draw(spaces())
    policy = data.draw(policies(space, Role.STUDENT))
    assert policy.completed(space) == policy
    firing = Policy(policy.firing(), policy.scalars)
    by_op = Counter(policy.firing())
    assert Counter(firing.completed(space).firing()) == by_op


def test_random_policies_are_uniform_on_both_grids_and_repeat_with_their_seed():
    draws = [s for seed in range(400) for s in random_policy(PBA, Role.STUDENT, Random(seed)).settings]
    joint = Counter((s.probability_bin, s.magnitude_bin) for s in draws)
    assert len(joint) == 110
    # 12 000 draws over 110 equal cells; a right generator fails one seed in 10 000.
    assert stats.chisquare(list(joint.values())).pvalue > 1e-4
    assert random_policy(PBA, Role.STUDENT, Random(7)) == random_policy(PBA, Role.STUDENT, Random(7))


@pytest.mark.parametrize("is_log", [False, True])
def test_scalars_are_drawn_uniform_or_log_uniform(is_log):
    scalar = ScalarSpec("t", Role.STUDENT, 1.0, 0.01, 100.0, log=is_log)
    rng = Random(0)
    draws = [draw_scalar(scalar, rng) for _ in range(5000)]
    scale = log if is_log else float
    low, high = scale(0.01), scale(100.0)
    uniform = stats.uniform(low, high - low)
    assert stats.kstest([scale(draw) for draw in draws], uniform.cdf).pvalue > 1e-4


@given(scalar_specs(), st.integers(0, 2**32))
def test_drawn_scalars_stay_in_range(scalar, seed):
    assert scalar.low <= draw_scalar(scalar, Random(seed)) <= scalar.high


@given(st.data())
def test_settings_survive_their_file_form(data):
    space = data.draw(spaces())
    policy = data.draw(policies(space, Role.STUDENT))
    problems: list[str] = []
    whole = policy_to_list(policy, space, firing_only=False)
    assert policy_from_list(whole, space, "f", problems) == policy.settings
    firing = policy_to_list(policy, space, firing_only=True)
    assert policy_from_list(firing, space, "f", problems) == policy.firing()
    assert problems == []


def test_the_file_form_is_readable():
    rows = policy_to_list(Policy((OpSetting("rotate", 3, 7),)), PBA, firing_only=True)
    assert rows == [{"op": "rotate", "probability": 0.3, "magnitude_bin": 7}]  # 0.3, not 0.30000000000000004


GOOD = {"op": "rotate", "probability": 0.2, "magnitude_bin": 7}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"op": "rotat"}, ["f[0]: unknown op 'rotat'", "Did you mean 'rotate'?"]),
        ({"op": ["rotate"]}, ["f[0]: unknown op ['rotate']"]),
        ({"op": None}, ["f[0]: unknown op None"]),
        ({"probability": 1.7}, ["f[0].probability: got 1.7", "[0, 1]"]),
        ({"probability": -0.1}, ["f[0].probability: got -0.1"]),
        ({"probability": 0.25}, ["f[0].probability: got 0.25", "multiple of 1/10"]),
        ({"probability": float("nan")}, ["f[0].probability: got nan"]),
        ({"probability": True}, ["f[0].probability: got True"]),
        ({"probability": "0.2"}, ["f[0].probability: got '0.2'"]),
        ({"magnitude_bin": 10}, ["f[0].magnitude_bin: got 10", "0..9"]),
        ({"magnitude_bin": -1}, ["f[0].magnitude_bin: got -1"]),
        ({"magnitude_bin": 7.0}, ["f[0].magnitude_bin: got 7.0"]),
        ({"magnitude": 7}, ["f[0]: got", "expected the keys op, probability, magnitude_bin"]),
    ],
    ids=str,
)
def test_a_wrong_setting_is_told_and_left_out(change, words):
    problems: list[str] = []
    assert policy_from_list([GOOD | change, GOOD], PBA, "f", problems) == (OpSetting("rotate", 2, 7),)
    assert len(problems) == 1
    for word in words:
        assert word in problems[0]


@pytest.mark.parametrize("data", [None, {}, "rotate", 3])
def test_settings_that_are_no_list(data):
    problems: list[str] = []
    assert policy_from_list(data, PBA, "f", problems) == ()
    assert len(problems) == 1 and "expected a list" in problems[0]


def test_an_op_stands_at_most_once_per_copy():
    problems: list[str] = []
    policy_from_list([GOOD] * 3, PBA, "f", problems)
    assert problems == ["f: op 'rotate' stands 3 times; expected at most 2 (copies)"]
