import math

import pytest
import stateful_cases as cases
import torch

CHANGES = [
    ([(3, 4, 4)], [(5, 4, 4)]),
    ([(2, 6, 6), (3, 3, 3)], [(4, 3, 3), (2, 3, 3)]),
    ([(3, 2, 2), (6,)], [(2, 4, 4), (3,)]),
]


def pooled(feature: list, size: int) -> list:
    """(C, H, H) to (C, size, size), H a multiple of size."""
    step = len(feature[0]) // size
    cell = range(step)
    return [
        [
            [sum(c[y * step + i][x * step + j] for i in cell for j in cell) / step**2 for x in range(size)]
            for y in range(size)
        ]
        for c in feature
    ]


def by_loop(losses, own, wanted) -> float:
    state, total = losses.state["vid"], 0.0
    for place, (features, targets) in enumerate(zip(own, wanted, strict=True)):
        weights = [p.reshape(p.shape[:2]).tolist() for p in state.means[place].parameters()]
        raw = state.raw_variances[place].tolist()
        terms = []
        for f, t in zip(features.tolist(), targets.tolist(), strict=True):
            if features.dim() == 2:
                f, t = ([[[value]] for value in side] for side in (f, t))
            size = min(len(f[0]), len(t[0]))
            f, t = pooled(f, size), pooled(t, size)
            for y in range(size):
                for x in range(size):
                    inner = [channel[y][x] for channel in f]
                    for layer, weight in enumerate(weights):
                        inner = [sum(w * v for w, v in zip(row, inner, strict=True)) for row in weight]
                        inner = inner if layer == 2 else [max(v, 0.0) for v in inner]
                    for c, mean in enumerate(inner):
                        variance = math.log1p(math.exp(raw[c])) + 1e-5
                        terms.append(0.5 * ((t[c][y][x] - mean) ** 2 / variance + math.log(variance)))
        total += math.fsum(terms) / len(terms)
    return total


@pytest.mark.parametrize(("student", "teacher"), CHANGES)
def test_equals_a_plain_loop(student, teacher):
    losses = cases.build("vid", student, teacher).double()
    for raw in losses.state["vid"].raw_variances:
        torch.nn.init.normal_(raw)
    own, wanted = cases.features(student, 3), cases.features(teacher, 3, seed=1)
    assert cases.loss_of(losses, cases.outputs(own, wanted)).item() == pytest.approx(
        by_loop(losses, own, wanted), rel=1e-6
    )


@pytest.mark.parametrize("variance", [0.5, 5.0, 40.0])
def test_variance_starts_where_it_should(variance):
    losses = cases.build("vid", [(3, 2, 2)], [(5, 2, 2)], initial_variance=variance)
    zeros = [torch.zeros(2, 3, 2, 2)], [torch.zeros(2, 5, 2, 2)]  # the mean of zeros is 0, so half the log is left
    assert cases.loss_of(losses, cases.outputs(*zeros)).item() == pytest.approx(0.5 * math.log(variance), abs=1e-5)
    assert losses.state["vid"].raw_variances[0].shape == (5,)


def test_best_variance_is_the_mean_squared_error():
    """Given the means, the loss is least at σ² = mean squared error per channel: there its gradient is 0."""
    losses = cases.build("vid", [(3, 4, 4)], [(2, 4, 4)]).double()
    own, wanted = cases.features([(3, 4, 4)], 6), cases.features([(2, 4, 4)], 6, seed=1)
    state = losses.state["vid"]
    best = (wanted[0] - state.means[0](own[0])).square().mean((0, 2, 3)).detach()
    with torch.no_grad():
        state.raw_variances[0].copy_((best - 1e-5).expm1().log())
    loss = cases.loss_of(losses, cases.outputs(own, wanted))
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (1 + best.log().mean().item()), rel=1e-9)
    assert state.raw_variances[0].grad.abs().max() < 1e-12


def test_gradients_reach_student_means_and_variances():
    losses = cases.build("vid", [(2, 4, 4)], [(3, 2, 2)]).double()
    wanted = cases.features([(3, 2, 2)], 2, seed=1)
    loss = lambda own: cases.loss_of(losses, cases.outputs(own, wanted))  # noqa: E731
    assert cases.gradcheck(losses, cases.features([(2, 4, 4)], 2), loss)
    loss(cases.features([(2, 4, 4)], 2)).backward()
    assert all(p.grad.abs().sum() > 0 for p in losses.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_finite(dtype, scale):
    losses = cases.build("vid", [(3, 4, 4)], [(5, 4, 4)])
    own = [scale * value for value in cases.features([(3, 4, 4)], 2, dtype=dtype)]
    cases.assert_finite_with_gradient(losses, own, cases.features([(5, 4, 4)], 2, dtype=dtype))


def test_a_collapsed_variance_stays_finite():
    losses = cases.build("vid", [(3, 4, 4)], [(5, 4, 4)])
    torch.nn.init.constant_(losses.state["vid"].raw_variances[0], -1e3)
    cases.assert_finite_with_gradient(
        losses, *(cases.features([shape], 2, dtype=torch.float32) for shape in ((3, 4, 4), (5, 4, 4)))
    )


def test_state_goes_on_where_it_was():
    one, two = (cases.build("vid", [(3, 4, 4)], [(5, 4, 4)], seed=seed) for seed in (0, 1))
    of = cases.outputs(*(cases.features([shape], 4, dtype=torch.float32) for shape in ((3, 4, 4), (5, 4, 4))))
    assert torch.equal(
        cases.loss_of(cases.build("vid", [(3, 4, 4)], [(5, 4, 4)]), of), before := cases.loss_of(one, of)
    )
    assert not torch.equal(cases.loss_of(two, of), before)
    two.load_state_dict(one.state_dict())
    assert torch.equal(cases.loss_of(two, of), before)


def test_learns_digits():
    losses = cases.learned("vid", ["stage1", "stage2", "stage3"], lr=0.02)
    assert losses[-1] < losses[0] - 0.1
