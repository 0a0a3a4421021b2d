import numpy as np
import pytest
import stateful_cases as cases
import torch

SHAPES = [
    ([(3, 4, 4)], [(3, 4, 4)]),
    ([(3, 4, 4)], [(5, 4, 4)]),
    ([(3,), (2, 2, 2)], [(7,), (2, 2, 2)]),
]


@pytest.mark.parametrize(("student", "teacher"), SHAPES)
def test_equals_a_plain_loop(student, teacher):
    losses = cases.build("hint", student, teacher).double()
    own, wanted = cases.features(student, 5), cases.features(teacher, 5, seed=1)
    expected = 0.0
    for place, regressor in enumerate(losses.regressors["hint"]):
        f, g = own[place].numpy(), wanted[place].numpy()
        weights = [p.detach().numpy().reshape(p.shape[:2]) for p in regressor.parameters()]
        squares = []
        for n, *where in np.ndindex(len(f), *f.shape[2:]):
            column = f[(n, slice(None), *where)]
            for c in range(g.shape[1]):
                mapped = sum(weights[0][c, i] * column[i] for i in range(len(column))) if weights else column[c]
                squares.append((mapped - g[(n, c, *where)]) ** 2)
        expected += sum(squares) / len(squares)
    assert cases.loss_of(losses, cases.outputs(own, wanted)).item() == pytest.approx(expected, rel=1e-6)


def test_gradients():
    losses = cases.build("hint", [(2, 3, 3)], [(3, 3, 3)]).double()
    wanted = cases.features([(3, 3, 3)], 3, seed=1)
    loss = lambda own: cases.loss_of(losses, cases.outputs(own, wanted))  # noqa: E731
    assert cases.gradcheck(losses, cases.features([(2, 3, 3)], 3), loss)
    loss(cases.features([(2, 3, 3)], 3)).backward()
    assert all(p.grad.abs().sum() > 0 for p in losses.parameters())


def test_zero_when_equal():
    losses, same = cases.build("hint", [(3, 4, 4)], [(3, 4, 4)]), cases.features([(3, 4, 4)], 4, dtype=torch.float32)
    assert not list(losses.parameters())
    assert cases.loss_of(losses, cases.outputs(same, same)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite(dtype):
    losses = cases.build("hint", [(3, 4, 4)], [(5, 4, 4)])
    large = [1e3 * value for value in cases.features([(5, 4, 4)], 2, dtype=dtype)]  # squares overflow float16
    cases.assert_finite_with_gradient(losses, cases.features([(3, 4, 4)], 2, dtype=dtype), large)
    zeros = [torch.zeros(2, 3, 4, 4, dtype=dtype)]
    cases.assert_finite_with_gradient(losses, zeros, large)


def test_regressors_are_built_alike_from_a_seed():
    one, two, other = (cases.build("hint", [(3, 4, 4)], [(5, 4, 4)], seed=seed) for seed in (0, 0, 1))
    own, wanted = (cases.features([shape], 4, dtype=torch.float32) for shape in ((3, 4, 4), (5, 4, 4)))
    values = [cases.loss_of(losses, cases.outputs(own, wanted)) for losses in (one, two, other)]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    other.load_state_dict(one.state_dict())
    assert torch.equal(cases.loss_of(other, cases.outputs(own, wanted)), values[0])


def test_learns_digits():
    losses = cases.learned("hint", ["stage2"], lr=0.1)
    assert losses[-1] < 0.9 * losses[0]
