import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rolekd_ray.distill.losses import ELSEWHERE, Losses, check_losses, weighted_sum
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.errors import ConfigError

LOSSES = ("cross_entropy", "hinton")


def loss_of(name: str, of: Outputs) -> torch.Tensor:
    return Losses([name])(of, {name: 1.0})[name]


def hinton(of: Outputs) -> torch.Tensor:
    return loss_of("hinton", of)


def cross_entropy(of: Outputs) -> torch.Tensor:
    return loss_of("cross_entropy", of)


def weighted_loss(weights: dict[str, float], of: Outputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    losses = Losses(list(weights))(of, weights)
    return weighted_sum(weights, losses), losses


def outputs(student, teacher=None, labels=None, temperature=4.0, dtype=torch.float32) -> Outputs:
    student = torch.as_tensor(student, dtype=dtype)
    teacher = None if teacher is None else torch.as_tensor(teacher, dtype=dtype)
    labels = torch.zeros(len(student), dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    return Outputs(student, teacher, labels, temperature)


def random_outputs(
    n: int = 6, k: int = 5, temperature: float = 4.0, scale: float = 3.0, dtype=torch.float32
) -> Outputs:
    rng = np.random.default_rng(n * 100 + k)
    student, teacher = rng.normal(0, scale, (2, n, k))
    return outputs(student, teacher, rng.integers(0, k, n), temperature, dtype)


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = top + math.log(math.fsum(math.exp(value - top) for value in row))
    return [value - total for value in row]


def hinton_by_loop(of: Outputs) -> float:
    rows = []
    for student, teacher in zip(of.logits_student.tolist(), of.logits_teacher.tolist(), strict=True):
        log_s = log_softmax([value / of.temperature for value in student])
        log_t = log_softmax([value / of.temperature for value in teacher])
        rows.append(math.fsum(math.exp(t) * (t - s) for s, t in zip(log_s, log_t, strict=True)))
    return of.temperature**2 * math.fsum(rows) / len(rows)


def cross_entropy_by_loop(of: Outputs) -> float:
    rows = [-log_softmax(row)[label] for row, label in zip(of.logits_student.tolist(), of.labels.tolist(), strict=True)]
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("n", "k"), [(1, 2), (6, 5), (33, 100)])
def test_losses_equal_plain_loops(n, k, temperature):
    of = random_outputs(n, k, temperature)
    # Two logarithms of about 1 are subtracted in float32, then multiplied by T².
    assert hinton(of).item() == pytest.approx(hinton_by_loop(of), rel=1e-6, abs=1e-6 * max(1, temperature**2 / 10))
    assert cross_entropy(of).item() == pytest.approx(cross_entropy_by_loop(of), rel=1e-6, abs=1e-6)
    exact = random_outputs(n, k, temperature, dtype=torch.float64)
    assert hinton(exact).item() == pytest.approx(hinton_by_loop(exact), rel=1e-12, abs=1e-13)


def test_hinton_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2) at T = 1: 3/4 ln(3/2) + 1/4 ln(1/2).
    of = outputs([[0.0, 0.0]], [[math.log(3), 0.0]], temperature=1)
    assert hinton(of).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-7)
    # The same distributions at T = 2 cost four times as much.
    assert hinton(outputs([[0.0, 0.0]], [[2 * math.log(3), 0.0]], temperature=2)).item() == pytest.approx(
        4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), abs=1e-6
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients(name):
    of = random_outputs(4, 3, 2.0, dtype=torch.float64)
    student = of.logits_student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logits: loss_of(name, Outputs(logits, of.logits_teacher, of.labels, of.temperature)), (student,)
    )


def test_gradient_of_hinton_is_the_known_one():
    of = random_outputs(6, 5, 3.0, dtype=torch.float64)
    student = of.logits_student.requires_grad_()
    hinton(of).backward()
    expected = 3.0 * ((student / 3).softmax(1) - (of.logits_teacher / 3).softmax(1)) / 6  # T (p_s - p_t) / N
    assert torch.allclose(student.grad, expected, atol=1e-12)


logits = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)), elements=st.floats(-50, 50))


@settings(max_examples=100, deadline=None)
@given(logits, st.floats(0.25, 20))
def test_hinton_is_zero_at_equality_and_ignores_shifts(values, temperature):
    same = outputs(values, values + 7.5, temperature=temperature)
    assert abs(hinton(same).item()) < 1e-5 * temperature**2


@settings(max_examples=100, deadline=None)
@given(logits, st.floats(0.25, 20), st.integers(0, 2**31))
def test_hinton_is_not_negative_and_follows_the_classes(values, temperature, seed):
    rng = np.random.default_rng(seed)
    teacher, order = rng.normal(0, 5, values.shape), rng.permutation(values.shape[1])
    loss = hinton(outputs(values, teacher, temperature=temperature, dtype=torch.float64)).item()
    assert loss > -1e-10
    turned = hinton(outputs(values[:, order], teacher[:, order], temperature=temperature, dtype=torch.float64)).item()
    assert turned == pytest.approx(loss, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("shards", [2, 4])
def test_mean_over_shards_is_the_whole(name, shards):
    of = random_outputs(8, 5, dtype=torch.float64)
    parts = zip(*(tensor.chunk(shards) for tensor in (of.logits_student, of.logits_teacher, of.labels)), strict=True)
    mean = torch.stack([loss_of(name, Outputs(*part, of.temperature)) for part in parts]).mean()
    assert mean.item() == pytest.approx(loss_of(name, of).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_saturated_logits_stay_finite(dtype):
    of = outputs([[3e4, -3e4, 0.0]], [[-3e4, 3e4, 0.0]], [1], temperature=1.0, dtype=dtype)
    student = of.logits_student.requires_grad_()
    total = hinton(of) + cross_entropy(of)
    total.backward()
    # Both are 6e4 up to the dtype's rounding of 3e4.
    assert total.item() == pytest.approx(1.2e5, rel=0.01) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_low_precision_is_widened_first(name, dtype):
    low = random_outputs(16, 50, scale=5.0, dtype=dtype)
    wide = Outputs(low.logits_student.float(), low.logits_teacher.float(), low.labels, low.temperature)
    loss = loss_of(name, low)
    assert loss.dtype == torch.float32 and torch.equal(loss, loss_of(name, wide))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_autocast_does_not_narrow(name):
    of = random_outputs(16, 50)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(name, of)
    assert torch.equal(loss, loss_of(name, of))


def test_weighted_loss():
    of = random_outputs()
    total, parts = weighted_loss({"cross_entropy": 0.1, "hinton": 0.9}, of)
    assert total.item() == pytest.approx(0.1 * cross_entropy_by_loop(of) + 0.9 * hinton_by_loop(of), rel=1e-6)
    assert parts["hinton"].item() == pytest.approx(hinton_by_loop(of), rel=1e-6)
    assert parts["cross_entropy"].item() == pytest.approx(cross_entropy_by_loop(of), rel=1e-6)


def test_gradient_of_a_weighted_sum():
    of = random_outputs()
    student = of.logits_student.requires_grad_()
    total, _ = weighted_loss({"cross_entropy": 0.5, "hinton": 2.0}, of)
    (whole,) = torch.autograd.grad(total, student, retain_graph=True)
    separate = [torch.autograd.grad(loss(of), student)[0] for loss in (cross_entropy, hinton)]
    assert torch.allclose(whole, 0.5 * separate[0] + 2.0 * separate[1], atol=1e-6)


def test_loss_of_weight_zero_is_not_computed():
    total, parts = weighted_loss({"cross_entropy": 1.0, "hinton": 0}, outputs([[1.0, 2.0]]))  # there is no teacher
    assert list(parts) == ["cross_entropy"] and total == parts["cross_entropy"]


def test_hinton_needs_a_teacher_and_a_temperature():
    with pytest.raises(ConfigError, match="teacher"):
        hinton(outputs([[1.0, 2.0]]))
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            hinton(outputs([[1.0, 2.0]], [[1.0, 2.0]], temperature=temperature))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"hintn": 1.0}, ["losses: unknown loss 'hintn'", "Did you mean 'hinton'?"]),
        ({"hinton": -1.0}, ["losses.hinton: got -1.0"]),
        ({"hinton": math.nan}, ["losses.hinton: got nan"]),
        ({"hinton": math.inf}, ["losses.hinton: got inf"]),
        ({"hinton": "much"}, ["losses.hinton: got 'much'"]),
        ({"hinton": True}, ["losses.hinton: got True"]),
        ({"hinton": 0, "cross_entropy": 0.0}, ["losses: got", "above 0"]),
        ({}, ["losses: got {}", "above 0"]),
        ({"a": 1.0, "hinton": -2}, ["unknown loss 'a'", "losses.hinton: got -2"]),
    ],
)
def test_check_losses(weights, words):
    text = "\n".join(check_losses(weights, "losses"))
    assert all(word in text for word in words)


def test_names_that_other_projects_use_are_understood_and_refused():
    known = known_methods()
    assert set(ELSEWHERE.values()) <= set(known) and not set(ELSEWHERE) & set(known)
    for name, meant in (("kd", "hinton"), ("AT", "attention"), ("DKD", "dkd"), ("ReviewKD", "review")):
        (problem,) = check_losses({name: 1.0}, "losses")
        assert f"unknown loss {name!r}" in problem and f"Did you mean {meant!r}?" in problem
        assert "ROLEKD_METHODS" in problem


def test_check_losses_accepts_what_is_right():
    assert check_losses({"cross_entropy": 0.1, "hinton": 1}, "losses") == []
    assert check_losses({"cross_entropy": 1.0, "hinton": 0}, "losses") == []
