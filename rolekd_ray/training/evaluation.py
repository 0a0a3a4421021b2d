"""How good a network is on images nobody trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rolekd_ray.errors import TrainingError
from rolekd_ray.progress import advance
from rolekd_ray.training.precision import autocast
from rolekd_ray.training.sharding import ALONE, Sharding
from rolekd_ray.training.views import Views

CALIBRATION_BINS = 15
BATCH = 500


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one network on one split.

    Attributes:
        accuracy: fraction whose label is the most likely class.
        loss: mean cross-entropy with the labels in nats, which is the negative log-likelihood.
        calibration_error: expected calibration error over 15 equal confidence bins, in [0, 1].
        entropy: mean entropy of the predicted probabilities in nats, in [0, log K].
        class_accuracy: accuracy on each class's images, K values; None for a class without images.
        images: how many there are.
        top5_accuracy: fraction whose label is among the five most likely classes; None where there are at most five.
    """

    accuracy: float
    loss: float
    calibration_error: float
    entropy: float
    class_accuracy: list[float | None]
    images: int
    top5_accuracy: float | None = None

    @property
    def lowest_class_accuracy(self) -> float:
        """Accuracy on the class on which it is lowest."""
        return min(value for value in self.class_accuracy if value is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: all attributes and `lowest_class_accuracy`; no `top5_accuracy` where it means nothing."""
        plain = asdict(self) | {"lowest_class_accuracy": self.lowest_class_accuracy}
        return {name: value for name, value in plain.items() if value is not None}


def predict(
    network: nn.Module, images: Tensor, views: Views, *, dtype: torch.dtype, sharding: Sharding = ALONE
) -> Tensor:
    """Return logits (N, K) float32 of un-augmented uint8 images; the network comes back in its own mode.

    With several workers each predicts some of the images, and all return all logits.
    """
    training = network.training
    network.eval()
    with torch.inference_mode(), autocast(dtype, images.device):
        logits = []
        for part in sharding.rows(images).split(BATCH):
            logits.append(network(views.clean(part).contiguous(memory_format=torch.channels_last)).float())
            advance()
        network.train(training)
        return sharding.gather(torch.cat(logits), len(images))


def evaluate(
    network: nn.Module, images: Tensor, labels: Tensor, views: Views, *, dtype: torch.dtype, sharding: Sharding = ALONE
) -> Evaluation:
    """Return a network's metrics on images (N, C, H, W) uint8 with labels (N,) int64."""
    return score(predict(network, images, views, dtype=dtype, sharding=sharding), labels)


def score(logits: Tensor, labels: Tensor) -> Evaluation:
    """Return the metrics of logits (N, K), N at least 1.

    Source: expected calibration error as in Guo et al. 2017 (arXiv:1706.04599), eq. 3, with their 15 bins; the study
    (2007.01922) has 10, and gives it in percent. Mean entropy and per-class accuracy: the study's code.
    """
    chances = logits.softmax(1)
    confidence, predicted = chances.max(1)
    right = (predicted == labels).float()
    # From below too: a confidence that is not a number must end as a loss that is none, not as an impossible index
    bins = (confidence * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, device=logits.device).index_add_(0, bins, right - confidence)
    classes = logits.shape[1]
    return Evaluation(
        accuracy=right.mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        calibration_error=(gaps.abs().sum() / len(labels)).item(),
        entropy=torch.special.entr(chances).sum(1).mean().item(),
        class_accuracy=_by_class(right, labels, classes),
        images=len(labels),
        top5_accuracy=_among_top(logits, labels, 5) if classes > 5 else None,
    )


def _by_class(right: Tensor, labels: Tensor, classes: int) -> list[float | None]:
    images = torch.bincount(labels, minlength=classes).tolist()
    found = (
        torch.zeros(classes, dtype=torch.float64, device=right.device).index_add_(0, labels, right.double()).tolist()
    )
    return [hits / count if count else None for hits, count in zip(found, images)]


def _among_top(logits: Tensor, labels: Tensor, count: int) -> float:
    return (logits.topk(count).indices == labels[:, None]).any(1).float().mean().item()


def check_finite(values: Mapping[str, Any], where: str) -> None:
    """Check losses and metrics by name; what is not a float, such as a list, is not looked at.

    Raises:
        TrainingError: some are not finite; names them.
    """
    broken = [f"{name} {value}" for name, value in values.items() if isinstance(value, float) and not isfinite(value)]
    if broken:
        raise TrainingError(f"{where}: loss is not finite: {', '.join(broken)}")


def agreement(logits: Tensor, other: Tensor) -> float:
    """Return the share of images on which two networks (N, K) name the same class."""
    return (logits.argmax(1) == other.argmax(1)).float().mean().item()
