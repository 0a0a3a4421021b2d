"""How good a network is on images nobody trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

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

    `accuracy` is a fraction; `loss` the mean cross-entropy in nats; `calibration_error` the expected calibration error
    over 15 equal confidence bins, in [0, 1].
    """

    accuracy: float
    loss: float
    calibration_error: float
    images: int

    def to_dict(self) -> dict[str, float]:
        """Return plain data."""
        return asdict(self)


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
    """Return the metrics of logits (N, K).

    Source: expected calibration error as in Guo et al. 2017 (arXiv:1706.04599), eq. 3.
    """
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).float()
    # From below too: a confidence that is not a number must end as a loss that is none, not as an impossible index
    bins = (confidence * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    gaps = torch.zeros(CALIBRATION_BINS, device=logits.device).index_add_(0, bins, right - confidence)
    return Evaluation(
        accuracy=right.mean().item(),
        loss=F.cross_entropy(logits, labels).item(),
        calibration_error=(gaps.abs().sum() / len(labels)).item(),
        images=len(labels),
    )


def check_finite(values: Mapping[str, float], where: str) -> None:
    """Check losses and metrics by name.

    Raises:
        TrainingError: some are not finite; names them.
    """
    broken = [f"{name} {value}" for name, value in values.items() if not isfinite(value)]
    if broken:
        raise TrainingError(f"{where}: loss is not finite: {', '.join(broken)}")


def agreement(logits: Tensor, other: Tensor) -> float:
    """Return the share of images on which two networks (N, K) name the same class."""
    return (logits.argmax(1) == other.argmax(1)).float().mean().item()
