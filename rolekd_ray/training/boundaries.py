"""How alike the decision boundaries of two networks lie: the ways from an image over each class's edge, compared."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rolekd_ray.distill.attacks import boundary_attack
from rolekd_ray.progress import advance
from rolekd_ray.training.robustness import BATCH

_TINY = 1e-8


@dataclass(frozen=True)
class BoundarySimilarity:
    """Means over pairs of an image and a target class; None where no pair counts.

    Attributes:
        magnitude: MagSim, the shorter way over the longer, in [0, 1].
        angle: AngSim, the cosine between the ways, in [-1, 1].
        pairs: how many count: both networks are right on the image, and both ways leave the class.
    """

    magnitude: float | None
    angle: float | None
    pairs: int


def boundary_similarity(one: nn.Module, other: nn.Module, images: Tensor, labels: Tensor) -> BoundarySimilarity:
    """Return MagSim and AngSim over the K - 1 classes that an image is not of.

    Costs 11 passes and 10 backwards for each network, image and class.

    Args:
        one: takes images in [0, 1].
        other: takes images in [0, 1].
        images: (N, C, H, W) uint8.
        labels: (N,) int64.

    Source: Heo et al., arXiv 1805.05532 (the metrics); the study's code (CURE, `decision_boundary_metric.py`), which
    takes the mean over all pairs at once, as we do, but lets images count on which a network was wrong from the start.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for part, truth in zip(images.split(BATCH), labels.split(BATCH)):
        clean = part.float() / 255
        with torch.no_grad():
            logits = one(clean)
            right = (logits.argmax(1) == truth) & (other(clean).argmax(1) == truth)
        clean, truth = clean[right], truth[right]
        for offset in range(1, logits.shape[1]):
            sums += _compared(one, other, clean, (truth + offset) % logits.shape[1])
            advance()
    magnitudes, angles, pairs = sums.tolist()
    if not pairs:
        return BoundarySimilarity(None, None, 0)
    return BoundarySimilarity(magnitudes / pairs, angles / pairs, int(pairs))


def _compared(one: nn.Module, other: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of magnitude ratios, the sum of cosines, and the number of pairs that count, (3,) float64."""
    if not len(images):
        return torch.zeros(3, dtype=torch.float64)
    moved = [boundary_attack(network, images, targets) for network in (one, other)]
    ways = [(after - images).flatten(1).double() for after, _ in moved]
    lengths = [way.norm(dim=1) for way in ways]
    counts = moved[0][1] & moved[1][1]
    shorter, longer = torch.minimum(*lengths), torch.maximum(*lengths)
    ratios = shorter / longer.clamp(min=_TINY)
    cosines = (ways[0] * ways[1]).sum(1) / (lengths[0] * lengths[1]).clamp(min=_TINY**2)
    return torch.stack([ratios[counts].sum(), cosines[counts].sum(), counts.double().sum()]).cpu()
