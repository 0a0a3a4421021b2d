import numpy as np
import pytest
import stateful_cases as cases
import torch

from rolekd_ray.distill.methods.review import hierarchical_context_loss

CHANGES = [
    ([(3, 5, 5)], [(2, 5, 5)]),
    ([(2, 6, 6), (3, 3, 3)], [(3, 6, 6), (4, 3, 3)]),
    ([(2, 4, 4), (3, 2, 2), (5,)], [(2, 8, 8), (3, 4, 4), (6,)]),
]


def convolved(features: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Slide a k x k window, k odd, over maps with a border of zeros."""
    edge = weight.shape[2] // 2
    padded = np.pad(features, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    result = np.zeros((len(features), len(weight), *features.shape[2:]))
    for n, d, y, x in np.ndindex(result.shape):
        window = padded[n, :, y : y + 2 * edge + 1, x : x + 2 * edge + 1]
        result[n, d, y, x] = (window * weight[d]).sum() + (0.0 if bias is None else bias[d])
    return result


def normalised(maps: np.ndarray) -> np.ndarray:
    mean, variance = maps.mean((0, 2, 3), keepdims=True), maps.var((0, 2, 3), keepdims=True)
    return (maps - mean) / np.sqrt(variance + 1e-5)


def nearest(maps: np.ndarray, size: int) -> np.ndarray:
    places = [place * maps.shape[2] // size for place in range(size)]
    return maps[:, :, places][:, :, :, places]


def cells(maps: np.ndarray, level: int) -> np.ndarray:
    edge = maps.shape[2]
    bounds = [(i * edge // level, -(-(i + 1) * edge // level)) for i in range(level)]
    return np.stack([np.stack([maps[:, :, a:b, c:d].mean((2, 3)) for c, d in bounds], -1) for a, b in bounds], -2)


def context_loss(own: np.ndarray, wanted: np.ndarray) -> float:
    total, weight, weights = ((own - wanted) ** 2).mean(), 1.0, 1.0
    for level in (4, 2, 1):
        if level < own.shape[2]:
            weight /= 2
            weights += weight
            total += weight * ((cells(own, level) - cells(wanted, level)) ** 2).mean()
    return total / weights


def by_loop(losses, own, wanted) -> float:
    state = {name: value.detach().numpy() for name, value in losses.state["review"].state_dict().items()}
    total, deeper = 0.0, None
    for place in reversed(range(len(own))):
        f, t = ((v if v.dim() == 4 else v[:, :, None, None]).numpy() for v in (own[place], wanted[place]))
        fused = normalised(convolved(f, state[f"fusions.{place}.enter.0.weight"]))
        if deeper is not None:
            deeper = nearest(deeper, fused.shape[2])
            part = f"fusions.{place}.attention"
            logits = convolved(np.concatenate([fused, deeper], 1), state[f"{part}.weight"], state[f"{part}.bias"])
            share = 1 / (1 + np.exp(-logits))
            fused = fused * share[:, [0]] + deeper * share[:, [1]]
        deeper = fused = nearest(fused, t.shape[2])
        total += context_loss(normalised(convolved(fused, state[f"fusions.{place}.leave.0.weight"])), t)
    return total


@pytest.mark.parametrize(("student", "teacher"), CHANGES)
def test_equals_plain_loops(student, teacher):
    losses = cases.build("review", student, teacher).double()
    own, wanted = cases.features(student, 3), cases.features(teacher, 3, seed=1)
    loss = cases.loss_of(losses, cases.outputs(own, wanted)).item()
    assert loss == pytest.approx(by_loop(losses, own, wanted), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_context_loss(size):
    own, wanted = (cases.features([(3, size, size)], 2, seed=seed)[0] for seed in (0, 1))
    loss = hierarchical_context_loss(own, wanted).item()
    assert loss == pytest.approx(context_loss(own.numpy(), wanted.numpy()), rel=1e-12)
    assert hierarchical_context_loss(own, own) == 0
    # A shift of everything by 2 is an error of 4 at every level, whatever the weights.
    assert hierarchical_context_loss(own + 2, own).item() == pytest.approx(4.0)


def test_width_is_capped():
    wide, narrow = (
        cases.build("review", [(2, 4, 4), (6, 2, 2)], [(2, 4, 4), (6, 2, 2)], width=width) for width in (99, 3)
    )
    assert [losses.state["review"].fusions[0].enter[0].out_channels for losses in (wide, narrow)] == [6, 3]


def test_gradients_reach_every_parameter_and_stage():
    student, teacher = [(2, 4, 4), (3, 2, 2)], [(3, 4, 4), (2, 2, 2)]
    losses = cases.build("review", student, teacher).double()
    wanted = cases.features(teacher, 3, seed=1)
    loss = lambda own: cases.loss_of(losses, cases.outputs(own, wanted))  # noqa: E731
    assert cases.gradcheck(losses, cases.features(student, 3), loss)
    own = [value.requires_grad_() for value in cases.features(student, 3)]
    loss(own).backward()
    assert all(value.grad.abs().sum() > 0 for value in [*own, *losses.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_finite(dtype, scale):
    student, teacher = [(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (3, 2, 2)]
    own = [scale * value for value in cases.features(student, 2, dtype=dtype)]
    cases.assert_finite_with_gradient(
        cases.build("review", student, teacher), own, cases.features(teacher, 2, dtype=dtype)
    )
    same = [value[:1].expand(2, -1, -1, -1) for value in own]
    cases.assert_finite_with_gradient(
        cases.build("review", student, teacher), same, cases.features(teacher, 2, dtype=dtype)
    )


def test_state_goes_on_where_it_was():
    student, teacher = CHANGES[1]
    one, again, two = (cases.build("review", student, teacher, seed=seed) for seed in (0, 0, 1))
    of = cases.outputs(*(cases.features(shapes, 4, dtype=torch.float32) for shapes in (student, teacher)))
    first = cases.loss_of(one, of)
    assert torch.equal(cases.loss_of(again, of), first) and not torch.equal(cases.loss_of(two, of), first)
    two.load_state_dict(one.state_dict())
    assert torch.equal(cases.loss_of(two, of), cases.loss_of(one, of))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_learns_digits():
    losses = cases.learned("review", ["stage1", "stage2", "stage3"], lr=0.02)
    assert losses[-1] < 0.9 * losses[0]
