"""The gate: phases flip at thresholds or at the cap, and nowhere else."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolekd_ray.augment.learned.gate import Gate, ordered
from rolekd_ray.errors import ConfigError

LOSSES = st.floats(0, 3)


@given(losses=st.lists(LOSSES, max_size=60), cap=st.integers(1, 7))
def test_flips_only_at_thresholds_or_the_cap(losses, cap):
    gate = Gate(0.5, 1.5, cap)
    assert gate.phase == "student"
    owed = 0
    phase, steps, counts, begun = "student", 0, {"student": 0, "augmentor": 0}, {"student": 1, "augmentor": 0}
    for loss in losses:
        gate.tell(loss)
        counts[phase] += 1
        steps += 1
        students_end = phase == "student" and loss < 0.5 and steps >= owed
        if students_end or (phase == "augmentor" and (loss > 1.5 or steps == cap)):
            owed = steps if phase == "augmentor" else owed
            phase, steps = {"student": "augmentor", "augmentor": "student"}[phase], 0
            begun[phase] += 1
        assert (gate.phase, gate.phase_steps, gate.steps, gate.phases) == (phase, steps, counts, begun)


@given(losses=st.lists(st.floats(0, 0.4), max_size=60), cap=st.integers(1, 7))
def test_the_augmentor_takes_half_of_the_steps_at_most(losses, cap):
    """Also where the student's loss stays low whatever the augmentor does."""
    gate = Gate(0.5, 1.5, cap)
    for loss in losses:
        gate.tell(loss)
        assert gate.steps["augmentor"] <= gate.steps["student"] + cap - 1


@given(losses=st.lists(st.floats(0.5, 1.5), max_size=40))
def test_between_the_thresholds_nothing_flips(losses):
    """Hysteresis: the thresholds themselves belong to the middle."""
    student, augmentor = Gate(0.5, 1.5, 1000), Gate(0.5, 1.5, 1000)
    augmentor.tell(0.4)
    for loss in losses:
        student.tell(loss)
        augmentor.tell(loss)
    assert student.phase == "student" and augmentor.phase == "augmentor"
    assert student.phases == {"student": 1, "augmentor": 0} and augmentor.phases == {"student": 1, "augmentor": 1}


def test_a_loss_that_is_no_number_ends_no_phase_but_by_the_cap():
    gate = Gate(0.5, 1.5, 2)
    gate.tell(math.nan)
    assert gate.phase == "student"
    gate.tell(0.1)
    gate.tell(math.nan)
    assert gate.phase == "augmentor"
    gate.tell(math.nan)
    assert gate.phase == "student"


@pytest.mark.parametrize(
    ("lower", "upper", "steps", "words"),
    [
        (1.5, 0.5, 5, "lower, upper: got 1.5, 0.5; expected lower below upper"),
        (1.0, 1.0, 5, "expected lower below upper"),
        (-0.1, 1.0, 5, "lower: got -0.1; expected a number from 0 up"),
        (0.1, math.inf, 5, "upper: got inf"),
        (math.nan, 1.0, 5, "lower: got nan"),
        (0.1, 1.0, 0, "max_steps: got 0; expected at least 1"),
    ],
)
def test_settings_out_of_order_are_errors(lower, upper, steps, words):
    with pytest.raises(ConfigError, match=words):
        Gate(lower, upper, steps)


@given(lower=st.floats(1e-3, 1e3), upper=st.floats(1e-3, 1e3))
def test_mutated_thresholds_are_brought_in_order(lower, upper):
    low, high = ordered(lower, upper)
    assert 0 <= low < high
    assert ordered(low, high) == (low, high)
    if lower < upper:
        assert (low, high) == (lower, upper)
    else:
        middle = (lower + upper) / 2
        assert math.isclose((low + high) / 2, middle)
        assert high - low >= max(lower - upper, 0.2 * middle) * (1 - 1e-9)


@given(factors=st.lists(st.tuples(st.sampled_from([0.8, 1.2]), st.sampled_from([0.8, 1.2])), max_size=60))
def test_pairs_mutated_again_and_again_stay_pairs(factors):
    lower, upper = 0.5, 0.6
    for down, up in factors:
        lower, upper = ordered(lower * down, upper * up)
        assert 0 < lower < upper


def test_repaired_pairs_by_hand():
    assert ordered(1.5, 0.5) == (0.5, 1.5)
    assert ordered(1.0, 1.0) == pytest.approx((0.9, 1.1))
    assert ordered(1.01, 0.99) == pytest.approx((0.9, 1.1))
    with pytest.raises(ConfigError):
        ordered(0.0, 0.0)
    with pytest.raises(ConfigError, match="lower: got -1"):
        ordered(-1.0, 1.0)


def test_moving_the_thresholds_goes_on_with_the_phase():
    gate = Gate(0.5, 1.5, 3)
    gate.tell(0.2)
    gate.tell(1.0)
    gate.move(2.0, 1.0)
    assert (gate.lower, gate.upper, gate.phase, gate.phase_steps) == (1.0, 2.0, "augmentor", 1)
    gate.tell(1.8)
    assert gate.phase == "augmentor"
    gate.tell(1.8)
    assert gate.phase == "student"  # three steps


def test_state_round_trip_through_json():
    gate = Gate(0.5, 1.5, 3)
    for loss in (1.0, 0.1, 1.0, 2.0, 0.3, 1.0):
        gate.tell(loss)
    other = Gate(0.1, 9.0, 99)
    other.load(json.loads(json.dumps(gate.state())))
    assert vars(other) == vars(gate)
    before = gate.state()
    for each in (gate, other):
        each.tell(1.0)
        each.tell(1.0)
    assert vars(other) == vars(gate) and gate.state() != before


def test_gates_of_one_state_share_nothing():
    state = Gate(0.5, 1.5, 3).state()
    one, two = Gate(0.1, 0.2, 1), Gate(0.1, 0.2, 1)
    one.load(state)
    two.load(state)
    one.tell(1.0)
    assert two.state() == Gate(0.5, 1.5, 3).state() == state
