"""Probabilistic knowledge transfer: how likely each image is another's neighbour."""

from torch import Tensor

from rolekd_ray.distill.features import total, unit, vector_pairs
from rolekd_ray.distill.registry import method

_EPSILON = 1e-7


@method("pkt", weight=30000.0, layers="embedding")
def pkt(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
    """Return the sum over pairs of mean_N² p_t log((p_t + 1e-7) / (p_s + 1e-7)).

    p are the rows of (1 + cosine) / 2 between images, each divided by its sum.

    Args:
        features_student: (N, …) each, flattened.
        features_teacher: (N, …) each.

    Source: Passalis and Tefas, arXiv 1803.10837, with the cosine kernel; the mean over N², the 1e-7
    and the weight as RepDistiller has them.
    """
    losses = []
    for own, wanted in vector_pairs(features_student, features_teacher):
        student, teacher = _neighbours(own), _neighbours(wanted)
        losses.append((teacher * ((teacher + _EPSILON).log() - (student + _EPSILON).log())).mean())
    return total(losses)


def _neighbours(points: Tensor) -> Tensor:
    points = unit(points)
    kernel = (points @ points.mT + 1) / 2
    return kernel / kernel.sum(1, keepdim=True)
