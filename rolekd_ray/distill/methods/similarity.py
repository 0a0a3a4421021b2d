"""Similarity-preserving distillation: which images of a batch activate a layer alike."""

from torch import Tensor

from rolekd_ray.distill.features import total, unit, vector_pairs
from rolekd_ray.distill.registry import method


@method("similarity", weight=3000.0, layers="last")
def similarity(features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
    """Return the sum over pairs of mean (G_s - G_t)², G = Q Qᵀ (N, N) with rows of length 1, Q the flat features.

    Args:
        features_student: (N, …) each, of any shape.
        features_teacher: (N, …) each, of any shape.

    Source: Tung and Mori, arXiv 1907.09682; the mean is their sum over N².
    """
    pairs = vector_pairs(features_student, features_teacher)
    return total([(unit(own @ own.mT) - unit(wanted @ wanted.mT)).square().mean() for own, wanted in pairs])
