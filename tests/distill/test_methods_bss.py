"""Boundary supporting samples: which images are attacked, towards what, and what the student learns from it."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.distill.attacks import boundary_attack
from rolekd_ray.distill.methods import bss as module
from rolekd_ray.distill.methods.bss import bss
from rolekd_ray.distill.outputs import Networks
from rolekd_ray.errors import ConfigError

MEAN, STD = torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.25])
N, K = 12, 4


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 8), nn.Tanh(), nn.Linear(8, K)).double()


def given(wrong: tuple[int, ...] = ()) -> dict:
    """A batch on which both networks are right but for some images: there the student, the teacher or both err."""
    student, teacher = network(0), network(1).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(60, 2, 3, 3, generator=generator, dtype=torch.float64)
    view = (pixels - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)
    with torch.no_grad():
        agree = student(view).argmax(1) == teacher(view).argmax(1)
        view = view[agree][:N]
        assert len(view) == N
        logits_student, logits_teacher = student(view), teacher(view)
    labels = logits_teacher.argmax(1)
    for at in wrong:
        if at % 3 == 0:
            labels[at] = (labels[at] + 1) % K
        else:
            errs = logits_student if at % 3 == 1 else logits_teacher
            errs[at] = errs[at].roll(1)
    return {
        "view": view, "networks": Networks(student, teacher, MEAN.double(), STD.double()),
        "logits_student": logits_student, "logits_teacher": logits_teacher, "labels": labels, "progress": 0.0,
        "generator": torch.Generator().manual_seed(3),
    }  # fmt: skip


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / math.fsum(powers) for power in powers]


def qualified_by_loop(of: dict) -> list[int]:
    """Places of the images that both networks get right, those of the largest gap first."""
    gaps = {}
    for at, label in enumerate(of["labels"].tolist()):
        own, wanted = of["logits_student"][at].tolist(), of["logits_teacher"][at].tolist()
        if own.index(max(own)) == label == wanted.index(max(wanted)):
            pairs = zip(softmax(own), softmax(wanted), strict=True)
            gaps[at] = math.fsum((s - t) ** 2 for c, (s, t) in enumerate(pairs) if c != label)
    return sorted(gaps, key=gaps.get, reverse=True)


def loss_by_loop(of: dict, targets: list[int], count: int, temperature: float) -> float:
    """Image by image: attacked in [0, 1], then the soft cross-entropy on it."""
    found = []
    mean, std = MEAN.view(-1, 1, 1).double(), STD.view(-1, 1, 1).double()
    nets = of["networks"]
    for at, target in zip(qualified_by_loop(of)[:count], targets, strict=False):
        pixels = of["view"][at : at + 1] * std + mean
        moved, _ = boundary_attack(lambda x: nets.teacher((x - mean) / std), pixels, torch.tensor([target]))
        with torch.no_grad():
            own, wanted = (net((moved - mean) / std)[0].tolist() for net in (nets.student, nets.teacher))
        log_own = [math.log(p) for p in softmax(own, temperature)]
        found.append(-math.fsum(p * q for p, q in zip(softmax(wanted, temperature), log_own, strict=True)))
    return math.fsum(found) / len(found)


def drawn(of: dict, count: int) -> list[int]:
    """The classes that the loss will draw, best image first."""
    chosen, _ = module._base_samples(of["logits_student"], of["logits_teacher"], of["labels"], count)
    generator = torch.Generator().manual_seed(3)
    return module._target_classes(of["logits_teacher"][chosen], of["labels"][chosen], generator).tolist()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("wrong", "samples"), [((), 64), ((), 2), ((0, 1, 2, 3, 4, 5, 6, 7, 8, 10), 64)])
def test_bss_equals_a_plain_loop(wrong, samples, temperature):
    of = given(wrong)
    count = min(samples, N // 4)
    expected = 2 * loss_by_loop(of, drawn(of, count), count, temperature)
    assert bss(**of, temperature=temperature, samples=samples).item() == pytest.approx(expected, rel=1e-6)


def test_the_attack_takes_place_in_pixels(monkeypatch):
    of, seen = given(), {}

    def attack(network, images, targets, **options):
        seen.update(images=images, targets=targets, logits=network(images), options=options)
        return 1 - images, torch.ones(len(images), dtype=torch.bool)

    monkeypatch.setattr(module, "boundary_attack", attack)
    bss(**of, steps=4, step_size=0.7)
    best = torch.tensor(qualified_by_loop(of)[:3])
    expected = of["view"][best] * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)
    assert torch.allclose(seen["images"], expected.clamp(0, 1)) and seen["images"].min() >= 0
    assert torch.allclose(seen["logits"], of["logits_teacher"][best])  # normalised again before the network
    assert seen["options"] == {"steps": 4, "step_size": 0.7} and (seen["targets"] != of["labels"][best]).all()


@pytest.mark.parametrize(("progress", "ratio"), [(0.0, 2.0), (0.375, 1.0), (0.6, 0.4), (0.75, 0.0), (0.99, 0.0)])
def test_the_weight_falls_to_0_at_three_quarters(progress, ratio):
    whole = bss(**given()).item() / 2
    assert bss(**(given() | {"progress": progress})).item() == pytest.approx(ratio * whole, abs=1e-12)


def test_after_three_quarters_no_network_is_called():
    def called(images: Tensor) -> Tensor:
        raise AssertionError

    of = given() | {"progress": 0.8}
    of["networks"] = replace(of["networks"], student=called, teacher=called)
    loss = bss(**of | {"logits_student": of["logits_student"].requires_grad_()})
    loss.backward()  # it may be the only loss
    assert loss.item() == 0 and not of["logits_student"].grad.any()


def gradients(of: dict, **options) -> list[Tensor]:
    return list(torch.autograd.grad(bss(**of, **options), list(of["networks"].student.parameters())))


def test_if_none_qualifies_the_loss_is_0():
    of = given(tuple(range(N)))
    assert bss(**of).item() == 0
    assert not any(gradient.any() for gradient in gradients(of))


def test_images_that_stand_in_are_not_moved():
    of, seen = given(tuple(at for at in range(N) if at != 5)), []
    student = of["networks"].student
    of["networks"] = replace(of["networks"], student=lambda images: seen.append(images) or student(images))
    bss(**of)
    chosen, usable = module._base_samples(of["logits_student"], of["logits_teacher"], of["labels"], 3)
    assert chosen[0] == 5 and usable.tolist() == [True, False, False]
    moved = (seen[0] - of["view"][chosen]).abs().amax((1, 2, 3))
    assert len(seen) == 1 and moved[0] > 0.01 and (moved[1:] < 1e-12).all()


def first(of: dict, count: int) -> dict:
    """A batch of the first images of another one."""
    return of | {name: of[name][:count] for name in ("view", "logits_student", "logits_teacher", "labels")}


@pytest.mark.parametrize(("count", "samples", "attacked"), [(1, 64, 1), (2, 64, 2), (3, 64, 2), (7, 64, 2), (7, 1, 1)])
def test_a_tiny_batch_attacks_two_images(count, samples, attacked):
    of = first(given(), count)
    expected = 2 * loss_by_loop(of, drawn(of, attacked), attacked, 3.0)
    assert bss(**of, samples=samples).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [2, 7])
def test_a_ragged_last_batch_of_a_student_with_batchnorm_of_vectors(count):
    of = first(given(), count)  # BatchNorm1d, as AlexNet has it, raises on one image
    student = nn.Sequential(of["networks"].student, nn.BatchNorm1d(K, dtype=torch.float64)).train()
    assert bss(**of | {"networks": replace(of["networks"], student=student)}).isfinite()


def test_gradients_of_bss():
    of = given()
    student = of["networks"].student
    names = ("3.weight", "3.bias")  # few, for each costs two attacks
    values = [student.get_parameter(name) for name in names]

    def loss(*changed: Tensor) -> Tensor:
        def called(images: Tensor) -> Tensor:
            return torch.func.functional_call(student, dict(zip(names, changed, strict=True)), (images,))

        changed_networks = replace(of["networks"], student=called)
        return bss(**of | {"networks": changed_networks, "generator": torch.Generator().manual_seed(3)})

    assert torch.autograd.gradcheck(loss, values)


def test_a_student_like_the_teacher_has_the_least():
    of = given()
    of["networks"] = replace(of["networks"], student=copy.deepcopy(of["networks"].teacher).requires_grad_())
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients(of))
    other = replace(of["networks"], student=network(5))
    least = bss(**of | {"generator": torch.Generator().manual_seed(3)})
    assert least < bss(**of | {"networks": other, "generator": torch.Generator().manual_seed(3)})


def test_the_attack_leaves_both_networks_alone():
    of = given()
    nets = of["networks"]
    teacher = nn.Sequential(nets.teacher, nn.BatchNorm1d(K, dtype=torch.float64)).eval()
    teacher.requires_grad_(True)  # as one that is trained, too
    student = nn.Sequential(nets.student, nn.BatchNorm1d(K, dtype=torch.float64))
    of["networks"] = replace(nets, teacher=teacher, student=student)
    before = copy.deepcopy(teacher.state_dict())
    for parameter in (*teacher.parameters(), *student.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5)
    bss(**of)
    assert all((parameter.grad == 0.5).all() for parameter in (*teacher.parameters(), *student.parameters()))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert student[1].num_batches_tracked == 1  # one pass: not one for each step
    loss = bss(**of)
    loss.backward()
    assert all((parameter.grad == 0.5).all() for parameter in teacher.parameters())
    assert any((parameter.grad != 0.5).any() for parameter in student.parameters())


def test_target_classes_follow_the_teacher():
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0]).expand(20000, K)
    labels = torch.full((20000,), 2)
    found = module._target_classes(logits, labels, torch.Generator().manual_seed(0))
    shares = torch.bincount(found, minlength=K) / len(found)
    expected = logits[0].clone().index_fill(0, torch.tensor(2), -torch.inf).softmax(0)
    assert shares[2] == 0 and torch.allclose(shares, expected, atol=0.015)  # 4 standard errors
    sure = torch.tensor([[-3e4, 3e4, 0.0, -3e4]]).expand(100, K)  # all but the label round to 0
    assert (module._target_classes(sure, torch.ones(100, dtype=torch.int64), torch.Generator()) == 2).all()


def test_bss_checks_its_temperature():
    with pytest.raises(ConfigError, match="temperature"):
        bss(**given(), temperature=0.0)
