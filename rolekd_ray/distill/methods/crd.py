"""Contrastive representation distillation: tell the teacher's embedding of an image from those of other images."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.distill.registry import method
from rolekd_ray.errors import ConfigError


@method("crd", weight=0.8, layers="embedding")
class ContrastiveRepresentation(nn.Module):
    """Noise-contrastive loss of embeddings and memory banks, summed over both networks: a scalar in nats.

    A linear layer per network embeds its features on the unit sphere. With s = <own embedding, a bank row of the other
    network> and l = s / τ - ln Z - ln(K / n), an image costs softplus(-l) for its own row, and softplus(l) for each of
    K rows of other classes. Z, one per network, is estimated in the first batch and then kept. Bank rows are running
    means of embeddings, updated in training mode by each batch after its loss. Both linear layers learn along; no
    gradient reaches the teacher.

    The banks belong to the state: 2 · n · `embedding` floats, 46 MB for 45 000 images, in every member's every state
    file, and as much on the device for each member. A step holds some (N, n) matrices: 23 MB each for a batch of 128.

    Args:
        shapes_student: one; of any features, which are flattened.
        shapes_teacher: of the teacher's.
        labels_of: (M,) labels of the whole file; they say which rows are of other classes.
        trained_on: (n,) places in the file; only these images have rows. An index outside of them ends in torch's
            error about an index out of range.
        embedding: D.
        negatives: K; at most the number of images outside of the largest class.
        sharpness: τ.
        momentum: of bank rows, in [0, 1].

    Raises:
        ConfigError: more than one layer; no image is of another class.

    Source: Tian et al., arXiv 1910.10699, constants as the authors' code has them (RepDistiller: D 128, K 16384,
    τ 0.07, momentum 0.5, weight 0.8). That draws negatives without replacement where a class leaves K others;
    here always with replacement, as noise-contrastive estimation assumes. Logarithms are taken of sums in a form that
    cannot overflow, without the code's 1e-7.
    """

    row_of: Tensor
    by_class: Tensor
    class_start: Tensor
    class_size: Tensor
    bank_student: Tensor
    bank_teacher: Tensor
    normaliser: Tensor

    def __init__(
        self,
        shapes_student: Sequence[Sequence[int]],
        shapes_teacher: Sequence[Sequence[int]],
        labels_of: Tensor,
        trained_on: Tensor,
        *,
        embedding: int = 128,
        negatives: int = 16384,
        sharpness: float = 0.07,
        momentum: float = 0.5,
    ):
        super().__init__()
        if len(shapes_student) != 1:
            raise ConfigError(f"distill.layers.crd: got {len(shapes_student)} layers; expected one")
        self.sharpness, self.momentum = sharpness, momentum
        self.embed_student = nn.Linear(math.prod(shapes_student[0]), embedding)
        self.embed_teacher = nn.Linear(math.prod(shapes_teacher[0]), embedding)
        self._register_rows(labels_of, trained_on)
        self.negatives = min(negatives, len(trained_on) - int(self.class_size.max()))
        if self.negatives < 1:
            raise ConfigError("distill.losses.crd: got training images of one class; expected at least two classes")
        for name in ("bank_student", "bank_teacher"):  # rows of length about 1
            self.register_buffer(name, (torch.rand(len(trained_on), embedding) * 2 - 1) * math.sqrt(3 / embedding))
        self.register_buffer("normaliser", torch.zeros(2))  # 0: not yet estimated

    def _register_rows(self, labels_of: Tensor, trained_on: Tensor) -> None:
        """Keep which row an image has, rows sorted by class, and where in that order each row's own class lies."""
        labels, count = labels_of[trained_on], len(trained_on)
        row_of = torch.full_like(labels_of, count)  # out of range, so that asking for it fails
        row_of[trained_on] = torch.arange(count, device=labels.device)
        sizes = labels.bincount()
        starts = sizes.cumsum(0) - sizes
        tables = {
            "row_of": row_of,
            "by_class": labels.argsort(stable=True),
            "class_start": starts[labels],
            "class_size": sizes[labels],
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)  # the data says it all

    def forward(
        self,
        features_student: list[Tensor],
        features_teacher: list[Tensor],
        indices: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss of features (N, …) of images at places `indices` in the file, each at most once."""
        rows = self.row_of[indices]
        student = F.normalize(self.embed_student(features_student[0].flatten(1)), dim=1)
        teacher = F.normalize(self.embed_teacher(features_teacher[0].detach().flatten(1)), dim=1)
        drawn = self._draw(rows, generator)
        of_student, z_student = self._contrast(student, self.bank_teacher, self.normaliser[0], rows, drawn)
        of_teacher, z_teacher = self._contrast(teacher, self.bank_student, self.normaliser[1], rows, drawn)
        if self.training:
            self.normaliser = torch.stack([z_student, z_teacher])
            self.bank_student = self._updated(self.bank_student, rows, student)
            self.bank_teacher = self._updated(self.bank_teacher, rows, teacher)
        return of_student + of_teacher

    def _draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return (N, n): how many times each row was drawn for each image; K in all, none of the image's class.

        Counts in place of (N, K) rows spare copies of N · K bank rows, 1 GB for a batch of 128, and a gradient that
        would be summed in an order of the device's choice.
        """
        size, start = self.class_size[rows][:, None], self.class_start[rows][:, None]
        many = torch.randint(2**62, (len(rows), self.negatives), generator=generator, device=rows.device)
        place = many % (
            len(self.by_class) - size
        )  # among images of other classes; 2^62 is so much that none is favoured
        drawn = self.by_class[torch.where(place < start, place, place + size)]
        counts = self.bank_student.new_zeros(len(rows), len(self.by_class))
        return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=counts.dtype))

    def _contrast(
        self, own: Tensor, bank: Tensor, normaliser: Tensor, rows: Tensor, drawn: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of embeddings (N, D) against the other network's bank (n, D), and Z."""
        scores = own @ bank.T / self.sharpness
        positive = scores.gather(1, rows[:, None])
        total = (positive.exp().sum() + (drawn * scores.exp()).sum()).detach()
        estimate = total / (len(rows) * (self.negatives + 1)) * len(bank)
        normaliser = torch.where(normaliser > 0, normaliser, estimate)
        shift = normaliser.log() + math.log(self.negatives / len(bank))
        costs = F.softplus(shift - positive).sum() + (drawn * F.softplus(scores - shift)).sum()
        return costs / len(rows), normaliser

    def _updated(self, bank: Tensor, rows: Tensor, embedded: Tensor) -> Tensor:
        """Return another bank; the old one is still needed backwards."""
        mean = self.momentum * bank[rows] + (1 - self.momentum) * embedded.detach()
        return bank.index_copy(0, rows, F.normalize(mean, dim=1))
