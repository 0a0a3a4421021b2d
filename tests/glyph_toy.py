"""Glyphs on a field: a teacher that knows shifts by how it is built, and a student that must learn them.

Ten random 8x8 glyphs, one per class, in the middle of 20x20 pixels with noise. The teacher, two convolutions and a
global maximum, sees centred glyphs only and yet knows shifted ones; the student is a plain MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, GLYPH, CLASSES, NOISE, REACH, BATCH = 20, 8, 10, 0.15, 5, 64


class Glyphs:
    """Images of one seed's glyphs: a function of the seed, and of what was asked before."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes = torch.randint(0, 2, (CLASSES, GLYPH, GLYPH), generator=self.generator).float()

    def images(self, count: int, reach: int = 0) -> tuple[Tensor, Tensor]:
        """Return (count, 1, 20, 20) images, each axis shifted by -reach … reach pixels, and their classes."""
        labels = torch.arange(count) % CLASSES
        fields = torch.zeros(count, 1, SIDE, SIDE)
        corners = (SIDE - GLYPH) // 2 + torch.randint(-reach, reach + 1, (count, 2), generator=self.generator)
        for field, label, (row, column) in zip(fields, labels.tolist(), corners.tolist()):
            field[0, row : row + GLYPH, column : column + GLYPH] = self.shapes[label]
        return fields + NOISE * torch.randn(fields.shape, generator=self.generator), labels


def new_teacher() -> nn.Module:
    convolutions = (nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 32, 5, padding=2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def new_student() -> nn.Module:
    layers = (nn.Linear(SIDE * SIDE, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, CLASSES))
    return nn.Sequential(nn.Flatten(), *layers)


def trained_teacher(images: Tensor, labels: Tensor, seed: int, steps: int = 250) -> nn.Module:
    """Return a teacher trained on labels, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = new_teacher()
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(teacher(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return teacher.eval().requires_grad_(False)


def fresh_student(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a student and its optimiser."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = new_student()
    return student, torch.optim.Adam(student.parameters(), 1e-3)


def distilled(teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T² · mean KL(teacher ‖ student)."""
    logs = ((logits / temperature).log_softmax(1) for logits in (student_logits, teacher_logits))
    return temperature**2 * F.kl_div(*logs, reduction="batchmean", log_target=True)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((network(images).argmax(1) == labels).float().mean())
