"""KD-SVD: how the main directions of adjacent layers' maps relate."""

from itertools import pairwise

import torch
from torch import Tensor

from rolekd_ray.distill.registry import method
from rolekd_ray.distill.singular import align, singular_vectors
from rolekd_ray.errors import ConfigError

CANDIDATES = 4
"""So many of the student's singular vectors are compared with the teacher's first."""


@method("svd", layers="stages", match=True, rk2020={"sum_over_batch": True})
def svd(features_student: list[Tensor], features_teacher: list[Tensor], *, sum_over_batch: bool = False) -> Tensor:
    """Return the sum over adjacent layers and pairs of channels of squared differences of affinities: a scalar.

    An affinity is exp(-(v_i - w_j)² / 8), of component i of a map's singular vector and component j of the next map's.
    The teacher's vector is its first, the student's is that of its first four which is nearest to the teacher's, up to
    the sign.

    Args:
        features_student: (N, C, H, W) or (N, D) each, two layers or more, with the teacher's numbers of channels.
        features_teacher: as many.
        sum_over_batch: whether images are summed over, as the role-kd code does, in place of their mean. The gradient
            then grows with the batch, which that code undoes by clipping it to the cross-entropy's.

    Raises:
        ConfigError: fewer than two layers.

    Source: Lee, Kim and Song, "Self-supervised knowledge distillation using singular value decomposition", ECCV 2018,
    as the role-kd code has it (`KD_SVD`). There vectors are multiplied by the teacher's singular values after these
    were divided by their own length, which makes 1 of a single one, so that factor is left out. What is not finite
    counts 0 there; here nothing becomes so unless features are, which ends the training. Regressors where channels
    differ, and the mean over images, are ours.
    """
    vectors = aligned_vectors(features_student, features_teacher, "svd")
    differences = [
        (_affinity(own, own_next) - _affinity(wanted, wanted_next)).square().sum()
        for (own, wanted), (own_next, wanted_next) in pairwise(vectors)
    ]
    return torch.stack(differences).sum() / (1 if sum_over_batch else len(features_student[0]))


def aligned_vectors(own: list[Tensor], wanted: list[Tensor], name: str) -> list[tuple[Tensor, Tensor]]:
    """Return per layer the student's vectors (N, C), which carry the gradient, and the teacher's.

    Raises:
        ConfigError: fewer than two layers.
    """
    if len(own) < 2:
        raise ConfigError(f"distill.layers.{name}: got {len(own)} layers; expected two or more")
    firsts = [singular_vectors(features.detach(), 1)[:, 0] for features in wanted]
    return [
        (align(singular_vectors(features, CANDIDATES), first), first)
        for features, first in zip(own, firsts, strict=True)
    ]


def _affinity(vectors: Tensor, following: Tensor) -> Tensor:
    return (-(vectors[:, :, None] - following[:, None]).square() / 8).exp()
