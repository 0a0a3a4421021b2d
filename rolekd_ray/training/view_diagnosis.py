"""What agents' views do to a frozen teacher's answers: T. stddev, and how often its first class stays."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.augment.t_stddev import TStddev
from rolekd_ray.augment.t_stddev_meter import GROUP_STEPS, TStddevMeter
from rolekd_ray.errors import DataError
from rolekd_ray.progress import advance

PlainAnswers = Callable[[Tensor, int], Tensor]
"""Maps places in the dataset (B,) and an epoch to the teacher's logits (B, K) of x, the base augmentation alone."""
Answers = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""The same for x', an agent's views: logits (n, K), and whose they are, places in the batch (n,); picking changes n."""


@dataclass(frozen=True)
class ViewDiagnosis:
    """What one chain of agents does to the teacher's answers.

    Attributes:
        t_stddev: with mean entropy and confidence.
        kept: share of views whose most likely class is that of their image's plain view, in [0, 1].
        chance: what `kept` would be if answers to views were dealt out among them at random.
    """

    t_stddev: TStddev
    kept: float
    chance: float

    @property
    def kept_beyond_chance(self) -> float:
        """(kept - chance) / (1 - chance), Cohen's kappa: 1 if all is kept, 0 for an answer that is always the same."""
        return (self.kept - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, T. stddev's beside ours."""
        return self.t_stddev.to_dict() | {"kept": self.kept, "kept_beyond_chance": self.kept_beyond_chance}


def diagnose_views(
    plain: PlainAnswers,
    agents: Mapping[str, Answers | None],
    indices: Tensor,
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    seed: int,
    teacher: str,
) -> dict[str, ViewDiagnosis]:
    """Return the diagnosis of each chain; all see the same images in the same order, so their results are paired.

    One pass for all chains asks the teacher for x once. Groups run on from epoch to epoch; an epoch's last batch is
    smaller, and left out if it is a single image, as trainings do.

    Args:
        plain: answers to x.
        agents: answers to x' by chain; None: x' is x.
        indices: images by their places in the dataset, (N,) int64.
        classes: K.
        epochs: passes over the images, each in an order of its own; 10 as published.
        batch_size: 64 as published. The level of T. stddev depends on it.
        seed: of the orders and the bootstrap.
        teacher: who answers.

    Raises:
        DataError: so few images that half of them, or more, are in one group.
        ConfigError: fewer than two groups.
        TrainingError: answers are not finite.
    """
    if 2 * GROUP_STEPS * batch_size > len(indices):
        raise DataError(
            f"batch size: got {batch_size} for {len(indices)} images; expected at most "
            f"{len(indices) // (2 * GROUP_STEPS)}, or the mean of {GROUP_STEPS} batches is nearly that of all images"
        )
    meters = {
        name: _Meter(TStddevMeter(classes, teacher=teacher, images=len(indices), seed=seed), classes)
        for name in agents
    }  # fmt: skip
    for epoch, batch in _batches(indices, epochs, batch_size, seed):
        of_plain = plain(batch, epoch)
        own = torch.arange(len(batch), device=batch.device)
        for name, answers in agents.items():
            meters[name].add(of_plain, *((of_plain, own) if answers is None else answers(batch, epoch)))
        advance()
    return {name: meter.result() for name, meter in meters.items()}


def _batches(indices: Tensor, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(stream_key(seed, "diagnosis", epoch) % 2**63)
        order = torch.randperm(len(indices), generator=generator).to(indices.device)
        for batch in indices[order].split(batch_size):
            if len(batch) > 1 or batch_size == 1:
                yield epoch, batch


class _Meter:
    """T. stddev, and what is kept, of one chain."""

    def __init__(self, t_stddev: TStddevMeter, classes: int):
        self.t_stddev = t_stddev
        self._counts = torch.zeros(classes, classes, dtype=torch.int64)  # by class of x and class of x'

    def add(self, plain: Tensor, augmented: Tensor, places: Tensor) -> None:
        self.t_stddev.add(plain, augmented)
        classes = len(self._counts)
        pairs = plain.argmax(1)[places] * classes + augmented.argmax(1)
        counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        self._counts = self._counts.to(counts.device) + counts

    def result(self) -> ViewDiagnosis:
        shares = self._counts.double() / self._counts.sum()
        chance = (shares.sum(1) * shares.sum(0)).sum()
        return ViewDiagnosis(self.t_stddev.result(), shares.diagonal().sum().item(), chance.item())
