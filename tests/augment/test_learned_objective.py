"""The objective, against sums by hand."""

import math

import pytest
import torch

from rolekd_ray.augment.learned.objective import changes, divergence, kept


def by_hand(clean, view, temperature):
    """mean over images of sum p log(p / q), in Python's floats."""
    total = 0.0
    for a, b in zip(clean.tolist(), view.tolist()):
        p, q = ([math.exp(z / temperature) for z in row] for row in (a, b))
        total += sum(x / sum(p) * math.log((x / sum(p)) / (y / sum(q))) for x, y in zip(p, q))
    return total / len(clean)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_equals_the_sum_by_hand(temperature):
    torch.manual_seed(0)
    logits = [2 * torch.randn(5, 7) for _ in range(4)]
    own, its = changes(*logits, temperature)
    assert float(own) == pytest.approx(by_hand(logits[0], logits[1], temperature), rel=1e-5)
    assert float(its) == pytest.approx(by_hand(logits[2], logits[3], temperature), rel=1e-5)
    assert float(own) != pytest.approx(by_hand(logits[1], logits[0], temperature), rel=1e-2)  # which way round


def test_references_are_constants():
    logits = [torch.randn(4, 3, requires_grad=True) for _ in range(4)]
    sum(changes(*logits, 2.0)).backward()
    assert logits[0].grad is None and logits[2].grad is None
    assert logits[1].grad.abs().sum() > 0 and logits[3].grad.abs().sum() > 0


def test_no_change_is_0_and_any_change_above():
    torch.manual_seed(0)
    logits, other = torch.randn(4, 3), torch.randn(4, 3)
    assert float(divergence(logits, logits + 5, 1.0)) == pytest.approx(0, abs=1e-6)
    assert divergence(logits, other, 1.0) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    clean, view = torch.tensor([[200.0, 0.0, -300.0]], dtype=dtype), torch.tensor([[0.0, 200.0, 100.0]], dtype=dtype)
    view.requires_grad_()
    found = divergence(clean, view, 1.0)
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(200, rel=1e-5)
    found.backward()
    assert view.grad.isfinite().all()


def test_kept_is_the_share_of_equal_top_classes():
    clean = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 1.0]])
    view = torch.tensor([[0.0, 9.0], [1.0, 2.0], [0.5, 0.6], [2.0, 1.0]])
    assert float(kept(clean, view)) == 0.75
