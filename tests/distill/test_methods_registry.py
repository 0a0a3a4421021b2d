"""What holds for every method of the registry, those of modules included."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_cases import EVERY, FEATURES, OURS, case, leaves, loss_and_gradients
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.outputs import Networks, Outputs
from rolekd_ray.distill.registry import Method, known_methods

TABLE = Path(__file__).parents[2] / "docs" / "methods.md"


def without_values(losses: Losses, outputs: Outputs, device: str) -> tuple[Losses, Outputs]:
    """The same as shapes without values, on a device that need not be there; inside of the mode."""

    def empty(value):
        if isinstance(value, torch.Tensor):
            return torch.empty(value.shape, dtype=value.dtype, device=device).requires_grad_(value.requires_grad)
        if isinstance(value, dict):
            return {key: empty(item) for key, item in value.items()}
        if isinstance(value, Networks):
            networks = {name: empty_module(getattr(value, name)) for name in ("student", "teacher")}
            return replace(value, mean=empty(value.mean), std=empty(value.std), **networks)
        return value

    def empty_module(module):
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = torch.nn.Parameter(empty(parameter.detach()), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                part._buffers[name] = None if buffer is None else empty(buffer)
        return module

    return empty_module(losses), Outputs(**{name: empty(value) for name, value in vars(outputs).items()})


@pytest.fixture(scope="module", autouse=True)
def autograd_started():
    """autograd's threads are started by the first backward pass; by a fake GPU's, no fork could ever take one again."""
    torch.ones((), requires_grad=True).backward()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", EVERY)
def test_no_method_waits_for_the_device(name, device):
    # A fake tensor has no values: whatever asks for one (.item(), nonzero, a mask as an index, `if tensor`) raises.
    losses, outputs = case(name)
    if not losses.takes("networks"):
        outputs = replace(outputs, networks=None)
    elif device == "cuda":
        pytest.skip("takes gradients itself, and torch has no fake ones on a GPU that is not there")
    with FakeTensorMode(allow_non_fake_inputs=True):
        losses, outputs = without_values(losses, outputs, device)
        loss = losses(outputs, {name: 1.0})[name]
        gradients = torch.autograd.grad(loss, leaves(losses, outputs), allow_unused=True) if device == "cpu" else [loss]
    assert isinstance(loss, FakeTensor) and loss.shape == () and loss.device.type == device
    assert any(gradient is not None for gradient in gradients)


WAITING = {
    "mask": lambda x: x[x > 0].sum(),
    "item": lambda x: x.sum() * x.max().item(),
    "branch": lambda x: x.sum() if x.sum() > 0 else -x.sum(),
    "nonzero": lambda x: x.nonzero().sum() * x.sum(),
    "device": lambda x: (x + torch.arange(x.shape[1])).sum(),
}


@pytest.mark.parametrize("waits", WAITING)
def test_the_check_for_waiting_finds(waits):
    losses, outputs = case("cross_entropy")
    losses.methods = {waits: Method(waits, lambda logits_student: WAITING[waits](logits_student))}
    losses.options = {waits: {}}
    problem = RuntimeError if waits == "device" else (DataDependentOutputException, DynamicOutputShapeException)
    with FakeTensorMode(allow_non_fake_inputs=True):
        losses, outputs = without_values(losses, replace(outputs, networks=None), "cuda")
        with pytest.raises(problem, match="device" if waits == "device" else None):
            losses(outputs, {waits: 1.0})


@pytest.mark.parametrize("name", EVERY)
def test_a_method_is_determined_by_what_it_is_given(name):
    (first, first_gradients), (again, again_gradients) = (loss_and_gradients(name, *case(name)) for _ in range(2))
    assert torch.equal(first, again)
    assert all(map(torch.equal, first_gradients, again_gradients))


@pytest.mark.parametrize("name", EVERY)
def test_a_method_moves_something_and_leaves_the_teacher_alone(name):
    losses, outputs = case(name)
    before = {k: v.clone() for k, v in outputs.networks.teacher.state_dict().items()}
    loss, gradients = loss_and_gradients(name, losses, outputs)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) or name == "bss"  # with labels by chance none may qualify
    after = outputs.networks.teacher.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(parameter.grad is None for parameter in outputs.networks.teacher.parameters())
    assert all(leaf.grad is None for leaf in leaves(losses, outputs))


CHANGES = {
    "equal rows": lambda x: x[:1].expand_as(x).clone(),
    "a pair of the student's rows": lambda x: torch.cat([x[:1], x[:-1]]),
    "zeros": torch.zeros_like,
    "the student's zeros": torch.zeros_like,
    "saturated": lambda x: 3e4 * x.sign(),
    "float16": torch.Tensor.half,
    "bfloat16": torch.Tensor.bfloat16,
    "batch of 2": lambda x: x,
}


def kind_of_batch(kind: str, outputs: Outputs) -> Outputs:
    """A batch in which something stands still or is out of range."""

    def changed(value):
        if isinstance(value, dict):
            return {key: changed(item) for key, item in value.items()}
        return CHANGES[kind](value.detach()).requires_grad_(value.requires_grad)

    sides = ["student"] if "student" in kind else ["student", "teacher", "self"]
    names = [f"{what}_{side}" for what in ("logits", "features") for side in sides]
    return replace(outputs, **{name: changed(getattr(outputs, name)) for name in names})


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("name", EVERY)
def test_values_and_gradients_stay_finite(name, kind):
    losses, outputs = case(name, count=2 if kind == "batch of 2" else 6)
    loss, gradients = loss_and_gradients(name, losses, kind_of_batch(kind, outputs))
    assert loss.isfinite()
    for gradient in gradients:
        assert gradient.isfinite().all()
        # Finite is not enough: a length of 0 clamped to 1e-12 gives gradients of 1e12
        assert kind == "saturated" or gradient.abs().max() < 1e4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in OURS if name != "bss"])
def test_low_precision_is_widened_first(name, dtype):
    losses, outputs = case(name)
    low = kind_of_batch("float16" if dtype == torch.float16 else "bfloat16", outputs)
    wide = replace(low, **{name: value.float() if isinstance(value, torch.Tensor) else
                           {layer: feature.float() for layer, feature in value.items()}
                           for name, value in vars(low).items() if "logits" in name or "features" in name})  # fmt: skip
    loss = losses(low, {name: 1.0})[name]
    assert loss.dtype == torch.float32 and torch.equal(loss, losses(wide, {name: 1.0})[name])


@pytest.mark.parametrize("name", FEATURES)
def test_a_loss_of_two_pairs_is_the_sum(name):
    function = known_methods()[name].make
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.rand(4, 3, 4, 4, generator=generator) for _ in range(3)] for _ in range(2))
    if name == "fsp":  # its pairs are of neighbours
        parts = [function(student[i : i + 2], teacher[i : i + 2]) for i in range(2)]
    else:
        parts = [function([own], [wanted]) for own, wanted in zip(student, teacher, strict=True)]
    assert function(student, teacher).item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)


def rows_of_the_table() -> dict[str, list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {name.strip("`"): rest for name, *rest in cells}


def test_the_table_has_every_method_once():
    assert TABLE.read_text().count("\n| `") == len(rows_of_the_table())
    assert sorted(rows_of_the_table()) == EVERY


@pytest.mark.parametrize("name", EVERY)
def test_the_table_says_what_the_registry_says(name):
    _, _, layers, weight, _ = rows_of_the_table()[name]
    method = known_methods()[name]
    assert layers == ("–" if method.layers == "none" else method.layers)
    assert float(weight.split()[0]) == method.weight
