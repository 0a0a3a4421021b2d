"""Accuracy on corrupted images, by corruption and severity."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rolekd_ray.augment.corruptions import SEVERITIES, STRENGTHS, corrupt
from rolekd_ray.data.corrupted import CorruptedSets
from rolekd_ray.training.evaluation import predict
from rolekd_ray.training.views import Views

Accuracies = dict[str, list[float]]
"""By corruption: one accuracy per severity, mild first."""


def corrupted_accuracies(network: nn.Module, images: Tensor, labels: Tensor, views: Views, *, seed: int) -> Accuracies:
    """Return the accuracy under each built-in corruption.

    Args:
        network: takes normalised images.
        images: (N, C, H, W) uint8, N at least 1.
        labels: (N,) int64.
        views: normalise; their fill comes in where images are moved.
        seed: of noise and directions.
    """

    def parts(name: str) -> Iterator[tuple[Tensor, Tensor]]:
        for severity in range(1, SEVERITIES + 1):
            yield corrupt(images, name, severity, seed=seed, fill=views.fill), labels

    return {name: [_accuracy(network, *part, views) for part in parts(name)] for name in STRENGTHS}


def published_accuracies(network: nn.Module, sets: CorruptedSets, views: Views, *, limit: int) -> Accuracies:
    """Return the accuracy under each published corruption, on the first `limit` images of each severity."""
    return {
        name: [_accuracy(network, *part, views) for part in sets.parts(name, limit)] for name in sorted(sets.pictures)
    }


def mean_accuracy(accuracies: Accuracies) -> float:
    """Return the mean over all corruptions and severities."""
    values = [value for row in accuracies.values() for value in row]
    return sum(values) / len(values)


def _accuracy(network: nn.Module, images: Tensor, labels: Tensor, views: Views) -> float:
    answers = predict(network, images, views, dtype=torch.float32).argmax(1)
    return (answers == labels).double().mean().item()
