"""Correlation congruence: similarities of the images of a batch under a Gaussian kernel."""

import math

import torch
from torch import Tensor

from rolekd_ray.distill.features import total, unit, vector_pairs
from rolekd_ray.distill.registry import method

_ORDER = 2


@method("correlation_congruence", weight=100.0, layers="embedding")
def correlation_congruence(
    features_student: list[Tensor], features_teacher: list[Tensor], *, gamma: float = 0.4
) -> Tensor:
    """Return the sum over pairs of mean_N² (C_s - C_t)², C the kernel exp(-gamma ‖x - y‖²) of unit vectors, expanded.

    Between unit vectors it is exp(-2 gamma) exp(2 gamma x·y), of which the terms up to (x·y)² are kept.

    Args:
        features_student: (N, …) each, flattened.
        features_teacher: (N, …) each.
        gamma: of the kernel.

    Source: Peng et al., arXiv 1904.01802; the mean over N², gamma and the weight as Knowledge-Distillation-Zoo (AberHu)
    has them for CIFAR-10. RepDistiller's loss of this name is another one, products of neighbouring images' absolute
    differences through a learned layer: its weight, 0.02, is not of this form.
    """
    pairs = vector_pairs(features_student, features_teacher)
    return total([(_kernel(own, gamma) - _kernel(wanted, gamma)).square().mean() for own, wanted in pairs])


def _kernel(points: Tensor, gamma: float) -> Tensor:
    points = unit(points)
    cosines = points @ points.mT
    terms = [(2 * gamma) ** power / math.factorial(power) * cosines**power for power in range(_ORDER + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(0)
