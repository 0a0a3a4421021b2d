"""What the tests of methods with regressors or state share: features, a student that learns digits, fake tensors."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rolekd_ray.data import load_image_set
from rolekd_ray.distill.capture import Capture
from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.outputs import Outputs

Shapes = Sequence[tuple[int, ...]]
DATASET = 40


def features(shapes: Shapes, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def labels_of(count: int = DATASET, classes: int = 4) -> Tensor:
    return torch.arange(count) % classes


def build(name: str, student: Shapes, teacher: Shapes, *, seed: int = 0, count: int = DATASET, **options) -> Losses:
    """Losses of one method on layers `0`, `1`, … of both networks, in a dataset of which every second image is used."""
    layers = [str(place) for place in range(len(student))]
    torch.manual_seed(seed)
    return Losses(
        [name],
        options={name: options},
        layers={name: (layers, layers)},
        built_with={
            "shapes_student": dict(zip(layers, student, strict=True)),
            "shapes_teacher": dict(zip(layers, teacher, strict=True)),
            "num_classes": 4,
            "labels_of": labels_of(count),
            "trained_on": torch.arange(0, count, 2),
        },
    )


def outputs(student: list[Tensor], teacher: list[Tensor], *, seed: int = 0, progress: float = 0.5) -> Outputs:
    n, indices = len(student[0]), 2 * torch.arange(len(student[0]))
    return Outputs(
        logits_student=torch.zeros(n, 4),
        logits_teacher=torch.zeros(n, 4),
        labels=labels_of()[indices],
        progress=progress,
        indices=indices,
        generator=torch.Generator().manual_seed(seed),
        features_student={str(place): value for place, value in enumerate(student)},
        features_teacher={str(place): value for place, value in enumerate(teacher)},
    )


def loss_of(losses: Losses, of: Outputs) -> Tensor:
    (name,) = losses.methods
    return losses(of, {name: 1.0})[name]


def assert_finite_with_gradient(losses: Losses, student: list[Tensor], teacher: list[Tensor], **about) -> None:
    """The loss, its gradient by the student's features and by every parameter are finite; the teacher gets none."""
    student = [value.clone().requires_grad_() for value in student]
    teacher = [value.clone().requires_grad_() for value in teacher]
    loss = loss_of(losses, outputs(student, teacher, **about))
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    found = [value.grad for value in [*student, *losses.parameters()] if value.grad is not None]
    assert found and all(torch.isfinite(gradient).all() for gradient in found)


def assert_no_sync(losses: Losses, student: Shapes, teacher: Shapes, n: int = 6, **about) -> None:
    """A step forward and backward runs on tensors without values, so nothing in it depends on a value."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        own = [torch.empty(n, *shape, requires_grad=True) for shape in student]
        of = outputs(own, [torch.empty(n, *shape) for shape in teacher], **about)
        loss_of(losses, of).backward()


def singular(feature: np.ndarray, count: int) -> list[np.ndarray]:
    """Right-singular vectors that carry more than 1e-5 of what is left, signs as `singular_vectors` has them."""
    matrix = feature.reshape(len(feature), -1)  # (C, positions)
    by_channels = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = np.linalg.eigh(matrix @ matrix.T if by_channels else matrix.T @ matrix)
    found = []
    for place in reversed(range(len(squares))):
        if squares[: place + 1].sum() > 1e-5 * squares.sum() and len(found) < count:
            vector = vectors[:, place] * np.sign(vectors[np.abs(vectors[:, place]).argmax(), place])
            found.append(vector if by_channels else matrix @ vector / np.linalg.norm(matrix @ vector))
    return found


def aligned_by_loop(
    losses: Losses, own: list[Tensor], wanted: list[Tensor]
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Per layer and image (student's vector, teacher's)."""
    (regressors,), layers = losses.regressors.values(), []
    for regressor, features, targets in zip(regressors, own, wanted, strict=True):
        pairs = []
        for feature, target in zip(regressor(features).detach().numpy(), targets.numpy(), strict=True):
            first = singular(target, 1)[0]
            near = max(singular(feature, 4), key=lambda v: abs(v @ first))
            pairs.append((near * np.sign(near @ first), first))
        layers.append(pairs)
    return layers


class TinyNetwork(nn.Module):
    """Three convolutions of some widths at sizes 8, 4 and 2, global pooling, a linear classifier."""

    def __init__(self, width: int):
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.stage3 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU())
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.stage3(self.stage2(self.stage1(images))).mean((2, 3)))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The first 200 bundled training digits, (200, 1, 8, 8) in [-1, 1], and their labels."""
    data = load_image_set("digits", None, split="train")
    return data.images[:200].float() / 127.5 - 1, data.labels[:200].clone()


@cache
def slightly_trained_teacher() -> TinyNetwork:
    torch.manual_seed(1)
    network, (images, labels) = TinyNetwork(12), digits()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(30):
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network.requires_grad_(False)


def learned(
    name: str, layers: list[str], *, lr: float, steps: int = 20, progress: float = 0.5, **options
) -> list[float]:
    """The loss of each of 20 steps of SGD by this loss alone, student and state together, on 64 real digits."""
    images, labels = digits()
    indices = torch.arange(64)
    torch.manual_seed(0)
    student, teacher = TinyNetwork(8), slightly_trained_teacher()
    own, wanted = Capture(student, layers), Capture(teacher, layers)
    with own, wanted:
        student(images[:2]), teacher(images[:2])
    shapes = [{layer: tuple(value.shape[1:]) for layer, value in side.features.items()} for side in (own, wanted)]
    losses = Losses(
        [name],
        options={name: options},
        layers={name: (layers, layers)},
        built_with={
            "shapes_student": shapes[0], "shapes_teacher": shapes[1], "num_classes": 10,
            "labels_of": labels, "trained_on": torch.arange(len(labels)),
        },
    )  # fmt: skip
    optimiser = torch.optim.SGD([*student.parameters(), *losses.parameters()], lr=lr, momentum=0.9)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(20):
        with own, wanted:
            logits, logits_teacher = student(images[indices]), teacher(images[indices])
        of = Outputs(
            logits, logits_teacher, labels[indices], progress=progress, indices=indices, generator=generator,
            features_student=own.features, features_teacher=wanted.features,
        )  # fmt: skip
        optimiser.zero_grad()
        loss = loss_of(losses, of)
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def gradcheck(losses: Losses, student: list[Tensor], loss: Callable[[list[Tensor]], Tensor]) -> bool:
    own = [value.clone().requires_grad_() for value in student]
    return torch.autograd.gradcheck(lambda *values: loss(list(values)), own)
