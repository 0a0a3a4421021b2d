"""Methods of relations between the images of a batch: rkd, pkt, correlation congruence."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rolekd_ray.distill.methods.correlation_congruence import correlation_congruence
from rolekd_ray.distill.methods.pkt import pkt
from rolekd_ray.distill.methods.rkd import RK2020, rkd, rkd_angle, rkd_distance

ALL = (rkd_distance, rkd_angle, rkd, pkt, correlation_congruence)
SHAPES = [((5, 3), (5, 4)), ((4, 2, 2, 2), (4, 3)), ((7, 1), (7, 6)), ((2, 3), (2, 3)), ((1, 3), (1, 2))]


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(first: list[float], second: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


def length(values: list[float]) -> float:
    return math.sqrt(dot(values, values))


def minus(first: list[float], second: list[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def of_length_1(values: list[float]) -> list[float]:
    return [value / length(values) for value in values] if any(values) else values


def huber(x: float, offset: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - offset


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def points(features: Tensor, normalise: bool) -> list[list[float]]:
    found = features.flatten(1).tolist()
    return [of_length_1(row) for row in found] if normalise else found


def distance_by_loop(student: Tensor, teacher: Tensor, normalise: bool = False, offset: float = 0.5) -> float:
    sides = []
    for features in (student, teacher):
        found = points(features, normalise)
        distances = [length(minus(a, b)) for a, b in product(found, found)]
        above = [d for d in distances if d > 0]
        sides.append([d / mean(above) if above else d for d in distances])
    return mean(huber(a - b, offset) for a, b in zip(*sides, strict=True))


def angle_by_loop(student: Tensor, teacher: Tensor, normalise: bool = False, offset: float = 0.5) -> float:
    sides = []
    for features in (student, teacher):
        found = points(features, normalise)
        sides.append([
            dot(of_length_1(minus(a, corner)), of_length_1(minus(b, corner)))
            for corner, a, b in product(found, found, found)
        ])  # fmt: skip
    return mean(huber(a - b, offset) for a, b in zip(*sides, strict=True))


def both_by_loop(*args, **options) -> float:
    return distance_by_loop(*args, **options) + 2 * angle_by_loop(*args, **options)


def pkt_by_loop(student: Tensor, teacher: Tensor) -> float:
    sides = []
    for features in (student, teacher):
        found = points(features, True)
        kernel = [[(1 + dot(a, b)) / 2 for b in found] for a in found]
        sides.append([k / math.fsum(row) for row in kernel for k in row])
    return mean(t * math.log((t + 1e-7) / (s + 1e-7)) for s, t in zip(*sides, strict=True))


def congruence_by_loop(student: Tensor, teacher: Tensor, gamma: float = 0.4) -> float:
    sides = []
    for features in (student, teacher):
        found = points(features, True)
        exponents = [2 * gamma * dot(a, b) for a, b in product(found, found)]
        sides.append([math.exp(-2 * gamma) * (1 + x + x * x / 2) for x in exponents])
    return mean((a - b) ** 2 for a, b in zip(*sides, strict=True))


BY_LOOP = {
    rkd_distance: distance_by_loop, rkd_angle: angle_by_loop, rkd: both_by_loop, pkt: pkt_by_loop,
    correlation_congruence: congruence_by_loop,
}  # fmt: skip


@pytest.mark.parametrize(("own", "wanted"), SHAPES, ids=str)
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
def test_losses_of_relations_equal_plain_loops(method, own, wanted):
    student, teacher = rows(*own, seed=1), rows(*wanted, seed=2)
    expected = BY_LOOP[method](student, teacher)
    assert method([student], [teacher]).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("method", [rkd_distance, rkd_angle, rkd], ids=lambda m: m.__name__)
def test_options_of_rkd(method, normalise, offset):
    student, teacher = rows(5, 3, seed=1), rows(5, 4, seed=2)
    student[0] *= 30  # far away, so that some differences are above 1
    found = method([student], [teacher], normalise=normalise, huber_offset=offset).item()
    assert found == pytest.approx(BY_LOOP[method](student, teacher, normalise, offset), rel=1e-6)
    if method is not rkd_angle and not normalise:
        assert found != pytest.approx(BY_LOOP[method](student, teacher, normalise, 0.5 - offset), rel=1e-3)
    assert RK2020 == {"normalise": True, "huber_offset": 0.0}


def test_gamma_of_correlation_congruence():
    student, teacher = rows(4, 3, seed=1), rows(4, 3, seed=2)
    found = correlation_congruence([student], [teacher], gamma=1.5).item()
    assert found == pytest.approx(congruence_by_loop(student, teacher, 1.5), rel=1e-6)
    # The expansion is near to the kernel itself where gamma is small
    whole = sum((math.exp(-0.01 * (2 - 2 * dot(*pair(student, i, j)))) -
                 math.exp(-0.01 * (2 - 2 * dot(*pair(teacher, i, j))))) ** 2
                for i, j in product(range(4), range(4))) / 16  # fmt: skip
    assert correlation_congruence([student], [teacher], gamma=0.01).item() == pytest.approx(whole, rel=1e-2)


def pair(features: Tensor, i: int, j: int) -> tuple[list[float], list[float]]:
    found = points(features, True)
    return found[i], found[j]


@pytest.mark.parametrize(
    "method", [*ALL, partial(rkd, chunk=2, normalise=True)], ids=lambda m: getattr(m, "__name__", "2")
)
def test_gradients_of_relations(method):
    student, teacher = rows(5, 3, seed=1).requires_grad_(), rows(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda own: method([own], [teacher]), student)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
def test_relations_of_equal_networks_cost_nothing(method):
    student = rows(6, 4).requires_grad_()
    loss = method([student], [student.detach()])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and student.grad.abs().max() < 1e-8


def turned(features: Tensor, seed: int) -> Tensor:
    return features @ torch.linalg.qr(rows(features.shape[1], features.shape[1], seed=seed))[0]


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.__name__)
def test_what_relations_do_not_see(method):
    student, teacher = rows(6, 4, seed=1), rows(6, 5, seed=2)
    loss = method([student], [teacher]).item()
    assert loss > 0
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    same = [
        (turned(student, 3), turned(teacher, 4)),
        (7 * student, 0.1 * teacher),
        (student[order], teacher[order]),
    ]
    if "rkd" in method.__name__:
        same.append((student + rows(1, 4, seed=5), teacher + 2))
    else:  # these look at directions from 0
        same.append((student * rows(6, 1, seed=6).abs(), teacher))
    for own, wanted in same:
        assert method([own], [wanted]).item() == pytest.approx(loss, rel=1e-9)
    assert method([student[order]], [teacher]).item() != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("chunk", [1, 4, 6, 100])
@pytest.mark.parametrize("method", [rkd_distance, rkd_angle, rkd], ids=lambda m: m.__name__)
def test_rkd_does_not_depend_on_chunks(method, chunk):
    student, teacher = rows(9, 4, seed=1).requires_grad_(), rows(9, 5, seed=2)
    found, expected = method([student], [teacher], chunk=chunk), method([student], [teacher], chunk=9)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-10, atol=1e-14)


class Watch(TorchDispatchMode):
    """Keeps the largest tensor's elements, and the most that were alive at once, of all that operations made."""

    def __init__(self):
        super().__init__()
        self.largest, self.most = 0, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self._alive = {key: (ref, size) for key, (ref, size) in self._alive.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                elements = storage.nbytes() // tensor.element_size()
                self.largest = max(self.largest, elements)
                self._alive[storage._cdata] = StorageWeakRef(storage), elements
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


@pytest.mark.parametrize(("images", "width"), [(48, 8), (24, 60)])
@pytest.mark.parametrize("method", [rkd_distance, rkd_angle, rkd], ids=lambda m: m.__name__)
def test_rkd_keeps_to_its_memory(method, images, width):
    student, teacher = rows(images, width, seed=1).requires_grad_(), rows(images, width, seed=2)
    chunk = 4
    with Watch() as watch:
        method([student], [teacher], chunk=chunk).backward()
    bound = chunk * images * max(images, width)
    assert watch.largest <= bound
    assert watch.most <= 10 * bound, watch.most / bound
    assert watch.most < images**2 * max(images, width), "all at once would be more"


def test_equal_rows_have_no_direction():
    # Three images in one place, seen apart by the teacher: a length of 0 must neither give NaN nor 1e12.
    student = rows(6, 3, seed=1)
    student[1:3] = student[0]
    student.requires_grad_()
    teacher = rows(6, 3, seed=2)
    rkd([student], [teacher], huber_offset=0.5).backward()
    assert student.grad.isfinite().all() and 0 < student.grad.abs().max() < 10
    together = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    loss = rkd([together], [teacher])
    loss.backward()
    assert loss.isfinite() and not together.grad.any()


def test_rkd_in_float32_stays_near_when_rows_are_close():
    # ‖x‖² + ‖y‖² - 2 x·y has no right digit left here
    student, teacher = 1000 + rows(6, 4, seed=1) * 1e-2, 1000 + rows(6, 4, seed=2) * 1e-2
    student, teacher = student.float(), teacher.float()
    expected = rkd([student.double()], [teacher.double()]).item()
    assert rkd([student], [teacher]).item() == pytest.approx(expected, rel=1e-4)
