import math
from itertools import pairwise

import numpy as np
import pytest
import stateful_cases as cases
import torch
from torch import nn

from rolekd_ray.distill.registry import known_methods
from rolekd_ray.errors import ConfigError

CHANGES = [
    ([(3, 4, 4), (4, 2, 2)], [(3, 4, 4), (4, 2, 2)]),
    ([(3, 4, 4), (3, 4, 4), (2, 2, 2)], [(3, 4, 4), (4, 4, 4), (2, 4, 4)]),
    ([(3, 2, 2), (6,)], [(4, 2, 2), (5,)]),
]
LEARNS, DISTILS = 0.1, 0.5
EARLY, LATE = {"progress": LEARNS}, {"progress": DISTILS}


def dot(one, other) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def softmax(row: list[float]) -> list[float]:
    total = math.fsum(map(math.exp, row))
    return [math.exp(value) / total for value in row]


def projected(layer, vectors, by_batch: bool) -> np.ndarray:
    weight, norm = layer.linear.weight.detach().numpy(), layer.norm
    scale, shift = norm.weight.detach().numpy(), norm.bias.detach().numpy()
    values = np.array([[dot(row, vector) for row in weight] for vector in vectors])
    mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
    if by_batch:
        mean, variance = values.mean(0), values.var(0)
    return (values - mean) / np.sqrt(variance + 1e-5) * scale + shift


def graph(attention, earlier, later, by_batch: bool) -> np.ndarray:
    sent, received = projected(attention.send, later, by_batch), projected(attention.receive, earlier, by_batch)
    inner = sent.shape[1] // attention.heads
    result = np.zeros((attention.heads, len(later), len(earlier)))
    for head, a, b in np.ndindex(result.shape):
        part = slice(head * inner, (head + 1) * inner)
        result[head, a, b] = dot(sent[a, part], received[b, part])
    return result


def distillation_by_loop(losses, own, wanted) -> float:
    terms, layers = [], cases.aligned_by_loop(losses, own, wanted)
    for (earlier, later), attention in zip(pairwise(layers), losses.state["mhgd"].attentions, strict=True):
        graphs = [graph(attention, [v[s] for v in earlier], [v[s] for v in later], by_batch=False) for s in (0, 1)]
        for rows, targets in zip(*(np.tanh(g).reshape(-1, g.shape[2]).tolist() for g in graphs), strict=True):
            terms += [p * math.log(p / q) for p, q in zip(softmax(rows), softmax(targets), strict=True)]
    return math.fsum(terms)


def attention_by_loop(losses, wanted, noise: torch.Generator) -> float:
    state, total = losses.state["mhgd"], 0.0
    layers = [[cases.singular(image, 1)[0] for image in target.numpy()] for target in wanted]
    for (earlier, later), attention, estimator in zip(
        pairwise(layers), state.attentions, state.estimators, strict=True
    ):
        n, heads = len(earlier), attention.heads
        drawn = torch.randn(heads, n, 1, generator=noise).numpy()[:, :, 0]
        shares = graph(attention, earlier, later, by_batch=True)
        hidden = np.maximum(projected(estimator.enter, earlier, by_batch=True), 0)
        for image in range(n):
            joined = []
            for head in range(heads):
                kept = drawn[head, image] > drawn[:, image].mean()
                row = softmax(shares[head, image].tolist())
                joined += [kept * dot(row, hidden[:, unit]) for unit in range(hidden.shape[1])]
            weight, bias = estimator.leave.weight.tolist(), estimator.leave.bias.tolist()
            estimate = [dot(row, joined) + b for row, b in zip(weight, bias, strict=True)]
            total += (1 - dot(estimate, later[image]) / math.sqrt(dot(estimate, estimate) + 1e-6)) / n
    return total + 5e-4 * math.fsum(v * v for p in state.parameters() for v in p.flatten().tolist())


def made(student, teacher, seed: int = 0, **options):
    """In float64, with BatchNorm as if it had learned something."""
    losses = cases.build("mhgd", student, teacher, seed=seed, **options).double()
    for module in losses.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias), nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.1, 1.0)
    return losses


@pytest.mark.parametrize(("student", "teacher"), CHANGES)
def test_distillation_equals_plain_loops(student, teacher):
    own, wanted = cases.features(student, 5), cases.features(teacher, 5, seed=1)
    losses = made(student, teacher)
    expected = distillation_by_loop(losses, own, wanted)
    assert cases.loss_of(losses, cases.outputs(own, wanted, **LATE)).item() == pytest.approx(expected / 5, rel=1e-6)
    summed = made(student, teacher, sum_over_batch=True)
    assert cases.loss_of(summed, cases.outputs(own, wanted, **LATE)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("student", "teacher"), CHANGES)
def test_attentions_own_loss_equals_plain_loops(student, teacher):
    wanted = cases.features(teacher, 5, seed=1)
    losses = made(student, teacher, heads=3)
    expected = attention_by_loop(losses, wanted, torch.Generator().manual_seed(7))
    of = cases.outputs(cases.features(student, 5), wanted, seed=7, **EARLY)
    assert cases.loss_of(losses, of).item() == pytest.approx(expected, rel=1e-6)


def test_warm_up_is_a_share_of_the_training():
    def kind(losses, progress) -> str:
        own = [value.requires_grad_() for value in cases.features(CHANGES[0][0], 3)]
        cases.loss_of(losses, cases.outputs(own, cases.features(CHANGES[0][1], 3), progress=progress)).backward()
        return "attention" if own[0].grad is None else "student"

    default, half = made(*CHANGES[0]), made(*CHANGES[0], warm_up=0.5)
    assert [kind(default, progress) for progress in (0.0, 0.28, 0.29, 0.99)] == ["attention"] * 2 + ["student"] * 2
    assert [kind(half, progress) for progress in (0.49, 0.5)] == ["attention", "student"]
    as_rolekd = made(*CHANGES[0], **known_methods()["mhgd"].rk2020)
    assert kind(as_rolekd, 0.0) == "student" and as_rolekd.state["mhgd"].sum_over_batch


def test_who_gets_gradients_and_what_changes():
    student, teacher = CHANGES[1]
    losses = made(student, teacher)
    state, regressors = losses.state["mhgd"], list(losses.regressors.parameters())
    own = [value.requires_grad_() for value in cases.features(student, 4)]
    wanted = [value.requires_grad_() for value in cases.features(teacher, 4, seed=1)]

    cases.loss_of(losses, cases.outputs(own, wanted, **EARLY)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in state.parameters())
    assert all(value.grad is None for value in [*own, *wanted, *regressors])

    losses.zero_grad()
    before = {name: value.clone() for name, value in losses.state_dict().items()}
    cases.loss_of(losses, cases.outputs(own, wanted, **LATE)).backward()
    assert all(p.grad is None for p in state.parameters())
    assert all(value.grad.abs().sum() > 0 for value in [*own, *regressors])
    assert all(value.grad is None for value in wanted)
    assert all(torch.equal(value, before[name]) for name, value in losses.state_dict().items())


def test_gradients():
    shapes = [(3, 1, 3), (4, 1, 2)]
    losses, wanted = made(shapes, shapes), cases.features(shapes, 2, seed=1)
    loss = lambda own: cases.loss_of(losses, cases.outputs(own, wanted, **LATE))  # noqa: E731
    assert cases.gradcheck(losses, cases.features(shapes, 2), loss)


def test_zero_when_equal_and_not_negative():
    shapes = CHANGES[0][0]
    losses, same = made(shapes, shapes), cases.features(shapes, 4)
    assert abs(cases.loss_of(losses, cases.outputs([-2 * value for value in same], same, **LATE)).item()) < 1e-12
    for seed in range(1, 5):
        assert cases.loss_of(losses, cases.outputs(cases.features(shapes, 4, seed), same, **LATE)) > 1e-4


def test_one_layer_is_too_few():
    with pytest.raises(ConfigError, match=r"layers\.mhgd: got 1 layers"):
        cases.build("mhgd", [(3, 2, 2)], [(3, 2, 2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("when", [EARLY, LATE])
def test_finite(dtype, when):
    student, teacher = [(3, 4, 4), (4, 2, 2)], [(5, 4, 4), (4, 2, 2)]
    losses = cases.build("mhgd", student, teacher)
    own, wanted = cases.features(student, 2, dtype=dtype), cases.features(teacher, 2, seed=1, dtype=dtype)
    for factor, target in [(1.0, 1.0), (0.0, 1.0), (1e3, 1e-3), (1.0, 0.0)]:
        given = [factor * value for value in own], [target * value for value in wanted]
        losses.zero_grad()
        if when is EARLY:
            loss = cases.loss_of(losses, cases.outputs(*given, **when))
            loss.backward()
            assert torch.isfinite(loss) and loss.dtype == torch.float32
            assert all(p.grad.isfinite().all() and p.grad.abs().max() < 1e4 for p in losses.state.parameters())
        else:
            cases.assert_finite_with_gradient(losses, *given, **when)
            same = [value[:1].expand(2, -1, -1, -1) for value in given[0]]
            cases.assert_finite_with_gradient(losses, same, given[1], **when)


def test_a_batch_of_one():
    losses, one = cases.build("mhgd", *CHANGES[0]), cases.features(CHANGES[0][0], 1, dtype=torch.float32)
    assert all(torch.isfinite(cases.loss_of(losses, cases.outputs(one, one, **when))) for when in (EARLY, LATE))


def test_state_goes_on_where_it_was():
    student, teacher = CHANGES[1]
    one, again, two = (cases.build("mhgd", student, teacher, seed=seed) for seed in (0, 0, 1))
    given = [cases.features(shapes, 4, dtype=torch.float32) for shapes in (student, teacher)]
    first = cases.loss_of(one, cases.outputs(*given, **EARLY))
    assert torch.equal(cases.loss_of(again, cases.outputs(*given, **EARLY)), first)
    assert not torch.equal(cases.loss_of(two, cases.outputs(*given, **EARLY)), first)
    two.load_state_dict(one.state_dict())
    for when in (EARLY, LATE):
        assert torch.equal(*(cases.loss_of(losses, cases.outputs(*given, **when)) for losses in (one, two)))


@pytest.mark.parametrize("when", [EARLY, LATE])
def test_nothing_waits_for_the_device(when):  # the registry's test sees one of the two
    student, teacher = [(3, 4, 4), (6, 2, 2)], [(4, 4, 4), (6, 2, 2)]
    cases.assert_no_sync(cases.build("mhgd", student, teacher), student, teacher, **when)


@pytest.mark.parametrize(("when", "lr"), [(EARLY, 0.05), (LATE, 0.2)])
def test_learns_digits(when, lr):
    losses = cases.learned("mhgd", ["stage2", "stage3"], lr=lr, **when)
    assert losses[-1] < 0.9 * losses[0]
