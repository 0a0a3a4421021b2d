"""Methods of logits: dkd, dist; and logit standardisation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray.distill.methods.dist import dist
from rolekd_ray.distill.methods.dkd import dkd
from rolekd_ray.distill.methods.hinton import hinton
from rolekd_ray.distill.standardise import standardise
from rolekd_ray.errors import ConfigError

SHAPES = [(1, 2), (2, 3), (6, 5), (16, 100)]


def batch(n: int, k: int, scale: float = 3.0, dtype=torch.float64):
    rng = np.random.default_rng(100 * n + k)
    student, teacher = (torch.tensor(rng.normal(0, scale, (n, k)), dtype=dtype) for _ in range(2))
    return student, teacher, torch.tensor(rng.integers(0, k, n))


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def divergence(teacher: list[float], student: list[float]) -> float:
    return math.fsum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True) if t > 0)


def dkd_by_loop(student, teacher, labels, temperature, alpha, beta) -> float:
    rows = []
    for own, wanted, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        parts = []
        for logits in (own, wanted):
            p = softmax(logits, temperature)
            others = [value for place, value in enumerate(p) if place != label]
            rest = math.fsum(others)
            parts.append(([p[label], rest], [value / rest for value in others]))
        (own_label, own_others), (label_t, others_t) = parts
        rows.append(alpha * divergence(label_t, own_label) + beta * divergence(others_t, own_others))
    return temperature**2 * math.fsum(rows) / len(rows)


def correlation(first: list[float], second: list[float]) -> float:
    first, second = ([value - math.fsum(side) / len(side) for value in side] for side in (first, second))
    spreads = math.sqrt(math.fsum(a * a for a in first) * math.fsum(b * b for b in second))
    return math.fsum(a * b for a, b in zip(first, second, strict=True)) / spreads if spreads else 0.0


def dist_by_loop(student, teacher, temperature, beta, gamma) -> float:
    own, wanted = ([softmax(row, temperature) for row in side.tolist()] for side in (student, teacher))
    inter = [1 - correlation(a, b) for a, b in zip(own, wanted, strict=True)]
    intra = [1 - correlation(a, b) for a, b in zip(map(list, zip(*own)), map(list, zip(*wanted)), strict=True)]
    return temperature**2 * (beta * math.fsum(inter) / len(inter) + gamma * math.fsum(intra) / len(intra))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.5, 2.0), (0.0, 1.0)])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_dkd_equals_a_plain_loop(n, k, alpha, beta, temperature):
    student, teacher, labels = batch(n, k)
    found = dkd(student, teacher, labels, 1.0, temperature, alpha=alpha, beta=beta).item()
    expected = dkd_by_loop(student, teacher, labels, temperature, alpha, beta)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 2.0), (1.0, 0.0), (0.0, 3.0)])
@pytest.mark.parametrize(("n", "k"), [shape for shape in SHAPES if shape[0] > 1])
def test_dist_equals_a_plain_loop(n, k, beta, gamma, temperature):
    student, teacher, _ = batch(n, k)
    found = dist(student, teacher, temperature, beta=beta, gamma=gamma).item()
    assert found == pytest.approx(dist_by_loop(student, teacher, temperature, beta, gamma), rel=1e-6)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.51, 1.0), (0.99, 1.0)])
def test_dkd_rises_over_its_warm_up(progress, share):
    student, teacher, labels = batch(6, 5)
    whole = dkd(student, teacher, labels, progress, warm_up=0.0).item()
    assert whole > 0 and dkd(student, teacher, labels, progress, warm_up=0.5).item() == pytest.approx(share * whole)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_is_hinton_with_the_teachers_own_weights(temperature):
    # KL = TCKD + (1 - p_t(label)) NCKD, so one image at a time with beta = 1 - p_t(label)
    student, teacher, labels = batch(6, 5)
    rest = 1 - (teacher / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
    rows = [
        dkd(student[i:][:1], teacher[i:][:1], labels[i:][:1], 1.0, temperature, beta=rest[i].item()) for i in range(6)
    ]
    assert torch.stack(rows).mean().item() == pytest.approx(hinton(student, teacher, temperature).item(), rel=1e-9)


@pytest.mark.parametrize("method", ["dkd", "dist"])
def test_gradients_of_logits(method):
    student, teacher, labels = batch(4, 3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda own: dkd(own, teacher, labels, 1.0) if method == "dkd" else dist(own, teacher), student
    )


def test_equal_logits_cost_nothing():
    student, _, labels = batch(6, 5)
    student.requires_grad_()
    for loss in (dkd(student, student.detach() + 3, labels, 1.0), dist(student, student.detach() + 3)):
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.item() == pytest.approx(0, abs=1e-12) and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("k", [3, 10, 100])
def test_dist_takes_rounding_for_no_spread(k):
    _, teacher, _ = batch(6, k, dtype=torch.float32)
    student = torch.full((6, k), 0.7, requires_grad=True)
    loss = dist(student, teacher)
    loss.backward()
    assert loss.item() == 16 * (2 + 2) and not student.grad.any()


def test_dist_does_not_see_scale_of_probabilities_per_image():
    # Probabilities that are a line of the teacher's are as good as equal ones: what sets it apart from a divergence
    _, teacher, _ = batch(6, 5)
    wanted = teacher.softmax(1)
    softer = (0.3 * wanted + 0.7 / 5).log()
    assert dist(softer, teacher, 1.0).item() == pytest.approx(0, abs=1e-12)
    assert hinton(softer, teacher, 1.0).item() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_dkd_of_saturated_logits(dtype, temperature):
    """The label's logit is left out, however large: masking it by -1000 leaves it the largest."""
    student = torch.tensor([[3e4, 1.0, 0.0], [-3e4, 3e4, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[3e4, 0.0, 1.0], [3e4, -3e4, 0.0]], dtype=dtype)
    labels = torch.tensor([0, 0])
    others = dkd(student, teacher, labels, 1.0, temperature, alpha=0.0, beta=1.0)
    expected = dkd_by_loop(
        torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]]), labels[:1], temperature, 0, 1
    )
    second = temperature**2 * (student[1, 1] - student[1, 2]).item() / temperature  # -log p of one of two classes
    assert others.item() == pytest.approx((expected + second) / 2, rel=1e-3)
    dkd(student, teacher, labels, 1.0, temperature).backward()
    assert student.grad.isfinite().all()


def test_temperatures_are_checked():
    student, teacher, labels = batch(2, 3)
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="temperature"):
            dkd(student, teacher, labels, 1.0, temperature)
        with pytest.raises(ConfigError, match="temperature"):
            dist(student, teacher, temperature)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_standardise_equals_a_plain_loop(n, k):
    logits, _, _ = batch(n, k)
    for found, row in zip(standardise(logits).tolist(), logits.tolist(), strict=True):
        mean = math.fsum(row) / k
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / (k - 1))
        assert found == pytest.approx([(value - mean) / deviation for value in row], rel=1e-9, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 100), st.floats(-100, 100), st.integers(0, 2**31))
def test_standardise_does_not_see_scale_or_shift(scale, shift, seed):
    logits = torch.tensor(np.random.default_rng(seed).normal(0, 1, (3, 6)))
    assert torch.allclose(standardise(scale * logits + shift), standardise(logits), atol=1e-9)


def test_standardise_of_equal_and_saturated_logits():
    logits = torch.tensor([[1.1, 1.1, 1.1], [3e4, -3e4, 0.0]], requires_grad=True)
    found = standardise(logits)
    assert found.tolist() == [[0.0, 0.0, 0.0], [pytest.approx(1.0), pytest.approx(-1.0), 0.0]]
    found[:, 0].sum().backward()
    assert logits.grad.isfinite().all() and not logits.grad[0].any()
    rows = batch(3, 4)[0].requires_grad_()
    assert torch.autograd.gradcheck(standardise, rows)
    equal = torch.full((2, 10), 1.1)
    assert (equal - equal.mean(1, keepdim=True)).any(), "in float32 the mean is another value"
    assert not standardise(equal).any()
    low = batch(3, 100)[0].bfloat16()
    assert torch.equal(standardise(low), standardise(low.float()))
