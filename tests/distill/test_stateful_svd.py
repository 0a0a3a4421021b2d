import math
from itertools import pairwise

import numpy as np
import pytest
import stateful_cases as cases
import torch

from rolekd_ray.errors import ConfigError

CHANGES = [
    ([(3, 4, 4), (4, 2, 2)], [(3, 4, 4), (4, 2, 2)]),
    ([(3, 4, 4), (3, 4, 4), (2, 2, 2)], [(3, 4, 4), (4, 4, 4), (2, 4, 4)]),
    ([(3, 2, 2), (6,)], [(4, 2, 2), (5,)]),
]


def by_loop(losses, own, wanted) -> float:
    layers, terms = cases.aligned_by_loop(losses, own, wanted), []
    for this, following in pairwise(layers):
        for (v, t), (v_next, t_next) in zip(this, following, strict=True):
            for i, j in np.ndindex(len(v), len(v_next)):
                affinity, target = (math.exp(-((a[i] - b[j]) ** 2) / 8) for a, b in ((v, v_next), (t, t_next)))
                terms.append((affinity - target) ** 2)
    return math.fsum(terms)


@pytest.mark.parametrize(("student", "teacher"), CHANGES)
def test_equals_plain_loops(student, teacher):
    own, wanted = cases.features(student, 5), cases.features(teacher, 5, seed=1)
    losses = cases.build("svd", student, teacher).double()
    expected = by_loop(losses, own, wanted)
    assert cases.loss_of(losses, cases.outputs(own, wanted)).item() == pytest.approx(expected / 5, rel=1e-6)
    summed = cases.build("svd", student, teacher, sum_over_batch=True).double()
    assert cases.loss_of(summed, cases.outputs(own, wanted)).item() == pytest.approx(expected, rel=1e-6)


def test_gradients():
    student = teacher = [(3, 1, 3), (4, 1, 2)]
    losses = cases.build("svd", student, teacher).double()
    wanted = cases.features(teacher, 2, seed=1)
    loss = lambda own: cases.loss_of(losses, cases.outputs(own, wanted))  # noqa: E731
    assert cases.gradcheck(losses, cases.features(student, 2), loss)


def test_regressors_learn_and_the_teacher_does_not():
    student, teacher = CHANGES[1]
    losses = cases.build("svd", student, teacher).double()
    own = [value.requires_grad_() for value in cases.features(student, 3)]
    wanted = [value.requires_grad_() for value in cases.features(teacher, 3, seed=1)]
    cases.loss_of(losses, cases.outputs(own, wanted)).backward()
    assert all(value.grad.abs().sum() > 0 for value in [*own, *losses.parameters()])
    assert [tuple(p.shape) for p in losses.parameters()] == [(4, 3, 1, 1)]
    assert all(value.grad is None for value in wanted)


def test_zero_when_equal_up_to_scale_and_sign_per_image():
    shapes = CHANGES[0][0]
    losses, same = cases.build("svd", shapes, shapes), cases.features(shapes, 4, dtype=torch.float32)
    signs = torch.tensor([1.0, -2.0, 3.0, -0.5])[:, None, None, None]
    assert cases.loss_of(losses, cases.outputs([signs * value for value in same], same)) < 1e-9
    other = cases.features(shapes, 4, seed=1, dtype=torch.float32)
    assert cases.loss_of(losses, cases.outputs(other, same)) > 1e-3


def test_one_layer_is_too_few():
    losses, one = cases.build("svd", [(3, 2, 2)], [(3, 2, 2)]), cases.features([(3, 2, 2)], 2)
    with pytest.raises(ConfigError, match=r"layers\.svd: got 1 layers"):
        cases.loss_of(losses, cases.outputs(one, one))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_finite(dtype, scale):
    student, teacher = [(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (4, 2, 2)]
    losses, own = cases.build("svd", student, teacher), cases.features(student, 2, dtype=dtype)
    wanted = cases.features(teacher, 2, seed=1, dtype=dtype)
    own = [scale * value for value in own]
    cases.assert_finite_with_gradient(losses, own, wanted)
    cases.assert_finite_with_gradient(losses, [value[:1].expand(2, -1, -1, -1) for value in own], wanted)
    cases.assert_finite_with_gradient(
        losses, [torch.ones_like(value) for value in own], [0 * value for value in wanted]
    )


def test_learns_digits():
    losses = cases.learned("svd", ["stage1", "stage2", "stage3"], lr=0.05)
    assert losses[-1] < 0.9 * losses[0]
