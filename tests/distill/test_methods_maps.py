"""Methods of feature maps: attention, nst, fsp, similarity."""

import math

import pytest
import torch
from torch import Tensor

from rolekd_ray.distill.features import unit
from rolekd_ray.distill.methods.attention import attention
from rolekd_ray.distill.methods.fsp import fsp
from rolekd_ray.distill.methods.nst import nst
from rolekd_ray.distill.methods.similarity import similarity
from rolekd_ray.errors import ConfigError

Shape = tuple[int, ...]


def maps(*shapes: Shape, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def pooled(channel: list, size: tuple[int, int], how) -> list:
    """A map (lists of rows) by `how` over cells; its sides are multiples of the size's."""
    high, wide = len(channel) // size[0], len(channel[0]) // size[1]
    return [
        [how([channel[i * high + a][j * wide + b] for a in range(high) for b in range(wide)]) for j in range(size[1])]
        for i in range(size[0])
    ]


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def flat(rows: list) -> list[float]:
    return [value for row in rows for value in row]


def of_length_1(values: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(value * value for value in values))
    return [value / length for value in values] if length > 0 else [0.0] * len(values)


def dot(first: list[float], second: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(first, second, strict=True))


def fitted(image: list, other: list, how) -> list:
    size = min(len(image[0]), len(other[0])), min(len(image[0][0]), len(other[0][0]))
    return [pooled(channel, size, how) for channel in image]


def attention_by_loop(student: Tensor, teacher: Tensor) -> float:
    found = []
    for own, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        sides = []
        for image in (fitted(own, wanted, mean), fitted(wanted, own, mean)):
            places = zip(*(flat(channel) for channel in image), strict=True)
            sides.append(of_length_1([mean(value**2 for value in place) for place in places]))
        found += [(a - b) ** 2 for a, b in zip(*sides, strict=True)]
    return mean(found)


def nst_by_loop(student: Tensor, teacher: Tensor) -> float:
    found = []
    for own, wanted in zip(student.tolist(), teacher.tolist(), strict=True):
        s, t = ([of_length_1(flat(channel)) for channel in image]
                for image in (fitted(own, wanted, mean), fitted(wanted, own, mean)))  # fmt: skip
        k = {(x, y): mean(dot(a, b) ** 2 for a in first for b in second)
             for x, first in (("s", s), ("t", t)) for y, second in (("s", s), ("t", t))}  # fmt: skip
        found.append(k["t", "t"] + k["s", "s"] - 2 * k["s", "t"])
    return mean(found)


def flow_by_loop(first: list, second: list) -> list[float]:
    first, second = fitted(first, second, max), fitted(second, first, max)
    places = len(first[0]) * len(first[0][0])
    return [dot(flat(a), flat(b)) / places for a in first for b in second]


def fsp_by_loop(student: list[Tensor], teacher: list[Tensor]) -> float:
    found = 0.0
    for at in range(len(student) - 1):
        squares = []
        for n in range(len(student[0])):
            own, wanted = ([side[layer][n].tolist() for layer in (at, at + 1)] for side in (student, teacher))
            # First student and teacher of each layer are brought to one size, then the neighbours
            both = [(fitted(own[i], wanted[i], max), fitted(wanted[i], own[i], max)) for i in range(2)]
            flows = [flow_by_loop(both[0][side], both[1][side]) for side in range(2)]
            squares += [(a - b) ** 2 for a, b in zip(*flows, strict=True)]
        found += mean(squares)
    return found


def similarity_by_loop(student: Tensor, teacher: Tensor) -> float:
    sides = []
    for features in (student, teacher):
        rows = features.flatten(1).tolist()
        sides.append([of_length_1([dot(a, b) for b in rows]) for a in rows])
    return mean((a - b) ** 2 for own, wanted in zip(*sides, strict=True) for a, b in zip(own, wanted, strict=True))


SHAPES = [
    ((2, 3, 4, 4), (2, 3, 4, 4)),
    ((3, 2, 4, 6), (3, 5, 2, 6)),  # other channels, the student's map is larger
    ((2, 4, 2, 3), (2, 1, 4, 6)),  # the teacher's is
    ((2, 1, 4, 2), (2, 2, 2, 4)),  # each is, in one direction
    ((1, 2, 1, 1), (1, 3, 2, 2)),
]


@pytest.mark.parametrize(("own", "wanted"), SHAPES, ids=str)
@pytest.mark.parametrize(("method", "by_loop"), [(attention, attention_by_loop), (nst, nst_by_loop)])
def test_losses_of_maps_equal_plain_loops(method, by_loop, own, wanted):
    (student,), (teacher,) = maps(own, seed=1), maps(wanted, seed=2)
    assert method([student], [teacher]).item() == pytest.approx(by_loop(student, teacher), rel=1e-6, abs=1e-12)


VECTORS = [((4, 3, 2, 2), (4, 3, 2, 2)), ((5, 7), (5, 2)), ((1, 3), (1, 4)), ((3, 2, 4, 4), (3, 9))]


@pytest.mark.parametrize(("own", "wanted"), VECTORS, ids=str)
def test_similarity_equals_plain_loops(own, wanted):
    (student,), (teacher,) = maps(own, seed=1), maps(wanted, seed=2)
    expected = similarity_by_loop(student, teacher)
    assert similarity([student], [teacher]).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ([(2, 2, 4, 4), (2, 3, 4, 4)], [(2, 2, 4, 4), (2, 3, 4, 4)]),
        ([(2, 2, 4, 4), (2, 3, 2, 2), (2, 1, 1, 1)], [(2, 2, 4, 4), (2, 3, 2, 2), (2, 1, 1, 1)]),
        ([(3, 2, 8, 4), (3, 3, 4, 2)], [(3, 2, 4, 4), (3, 3, 4, 4)]),
    ],
    ids=["two", "three", "sizes"],
)
def test_fsp_equals_plain_loops(own, wanted):
    student, teacher = maps(*own, seed=1), maps(*wanted, seed=2)
    assert fsp(student, teacher).item() == pytest.approx(fsp_by_loop(student, teacher), rel=1e-6)


@pytest.mark.parametrize("method", [attention, nst, similarity, fsp])
def test_gradients_of_maps(method):
    student, teacher = maps((2, 2, 4, 4), (2, 3, 2, 2), seed=1), maps((2, 2, 2, 2), (2, 3, 2, 2), seed=2)
    leaves = [own.requires_grad_() for own in student]
    assert torch.autograd.gradcheck(lambda *own: method(list(own), teacher), leaves)


@pytest.mark.parametrize("method", [attention, nst, similarity, fsp])
def test_maps_of_equal_networks_cost_nothing(method):
    student = [own.requires_grad_() for own in maps((3, 2, 4, 4), (3, 3, 2, 2))]
    loss = method(student, [own.detach() for own in student])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(own.grad.abs().max() < 1e-8 for own in student)


def turned(features: Tensor, seed: int = 3) -> Tensor:
    """Another orthonormal basis of everything but the batch."""
    rows = features.flatten(1)
    (square,) = maps((rows.shape[1], rows.shape[1]), seed=seed)
    return (rows @ torch.linalg.qr(square)[0]).view_as(features)


def test_what_losses_of_maps_do_not_see():
    (student,), (teacher,) = maps((4, 3, 4, 4), seed=1), maps((4, 3, 4, 4), seed=2)
    order = torch.tensor([2, 0, 1])
    for method in (attention, nst):
        loss = method([student], [teacher]).item()
        assert method([student[:, order]], [teacher]).item() == pytest.approx(loss)  # channels' order
        assert method([7 * student], [0.1 * teacher]).item() == pytest.approx(loss)  # scale
        assert method([student.flip(3)], [teacher.flip(3)]).item() == pytest.approx(loss)  # one view of both
        assert method([student.flip(3)], [teacher]).item() != pytest.approx(loss)  # but not two
    loss = similarity([student], [teacher]).item()
    assert similarity([turned(student)], [turned(teacher, 4)]).item() == pytest.approx(loss)
    assert similarity([3 * student], [teacher]).item() == pytest.approx(loss)
    first, second = maps((4, 3, 4, 4), (4, 2, 4, 4), seed=5)
    loss = fsp([student, second], [teacher, second]).item()
    assert fsp([student.flip(3), second.flip(3)], [teacher, second]).item() == pytest.approx(loss)  # places
    assert fsp([2 * student, second / 2], [teacher, second]).item() == pytest.approx(loss)
    assert fsp([first, second], [first.flip(3), second.flip(3)]).item() == pytest.approx(0, abs=1e-12)


def test_nst_is_a_distance_of_distributions():
    (student,), (teacher,) = maps((6, 3, 3, 3), seed=1), maps((6, 5, 3, 3), seed=2)
    assert nst([student], [teacher]) > 0
    twice = torch.cat([student, student], dim=1)  # the same channels, each twice
    assert nst([twice], [student]).item() == pytest.approx(0, abs=1e-12)


def test_maps_are_asked_for():
    vectors = maps((2, 3), (2, 3))
    for method in (attention, nst, fsp):
        with pytest.raises(ConfigError, match=rf"distill.layers.{method.__name__}: got features \(N, 3\); expected"):
            method(vectors, vectors)
    with pytest.raises(ConfigError, match=r"distill\.layers\.fsp: got 1 layer; expected at least 2"):
        fsp(*(maps((2, 3, 4, 4)) for _ in range(2)))
    with pytest.raises(ConfigError, match=r"distill\.layers\.fsp: got 3 channels; expected the teacher's 4"):
        fsp(maps((2, 3, 4, 4), (2, 3, 4, 4)), maps((2, 4, 4, 4), (2, 3, 4, 4)))


def test_unit_gives_zero_vectors_no_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-13, 0.0]], requires_grad=True)
    found = unit(rows)
    assert found.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0], [0.0, 0.0]]
    found[:, 0].sum().backward()
    assert rows.grad[1:].tolist() == [[0.0, 0.0], [0.0, 0.0]] and rows.grad[0].any()
