"""Relational distillation: distances between the images of a batch, and the angles at them.

For angles N³ cosines are compared. Runs of `chunk` images at which the angles stand are computed one after another, and
again in the backward pass, so no tensor has more than chunk · N · max(N, D) elements, and at most ten such are alive at
once, whatever N is; time is N³ D. Without chunks it would be N² max(N, D).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rolekd_ray.distill.features import TINY, total, unit, vector_pairs
from rolekd_ray.distill.registry import method

RK2020 = {"normalise": True, "huber_offset": 0.0}


@method("rkd_distance", weight=25.0, layers="embedding", rk2020=RK2020)
def rkd_distance(
    features_student: list[Tensor],
    features_teacher: list[Tensor],
    *,
    normalise: bool = False,
    huber_offset: float = 0.5,
    chunk: int = 32,
) -> Tensor:
    """Return the sum over pairs of mean_N² h(d_s / μ_s - d_t / μ_t): d distances of images, μ their mean.

    h(x) is x² / 2 below 1, else |x| - `huber_offset`. μ is over the distances above 0, and the gradient passes through
    it. Images with equal features have no direction to each other and get no gradient from that pair.

    Args:
        features_student: (N, …) each, flattened.
        features_teacher: (N, …) each.
        normalise: divide features by their length first, as the study's library (CURE) and role-kd do; the usual ports
            do not.
        huber_offset: 0.5 makes h continuous. The role-kd code has 0: Python 2 divided 1 by 2 in whole numbers. It also
            takes logits for features.
        chunk: images at a time.

    Source: Park et al., arXiv 1904.05068, section 3.2.1; weight of RepDistiller.
    """
    pairs = _pairs(features_student, features_teacher, normalise)
    return total([_huber(_distances(own, chunk) - _distances(wanted, chunk), huber_offset).mean()
                  for own, wanted in pairs])  # fmt: skip


@method("rkd_angle", weight=50.0, layers="embedding", rk2020=RK2020)
def rkd_angle(
    features_student: list[Tensor],
    features_teacher: list[Tensor],
    *,
    normalise: bool = False,
    huber_offset: float = 0.5,
    chunk: int = 32,
) -> Tensor:
    """Return the sum over pairs of mean_N³ h(c_s - c_t): c cosines of the angles that two images make at a third.

    h, `normalise` and what happens at images with equal features as for `rkd_distance`: their cosines are 0.

    Args:
        features_student: (N, …) each, flattened.
        features_teacher: (N, …) each.
        normalise: divide features by their length first.
        huber_offset: 0.5 makes h continuous.
        chunk: images at a time at which angles stand; bounds the memory as the file's head says.

    Source: Park et al., arXiv 1904.05068, section 3.2.2; weight of RepDistiller.
    """
    losses = []
    for own, wanted in _pairs(features_student, features_teacher, normalise):
        parts = _in_chunks(_angle_part, chunk, own, wanted, huber_offset)
        losses.append(total(parts) / len(own) ** 3)
    return total(losses)


@method("rkd", weight=25.0, layers="embedding", rk2020=RK2020)
def rkd(
    features_student: list[Tensor],
    features_teacher: list[Tensor],
    *,
    normalise: bool = False,
    huber_offset: float = 0.5,
    chunk: int = 32,
) -> Tensor:
    """Return `rkd_distance` + 2 `rkd_angle`; arguments as there.

    Source: Park et al., arXiv 1904.05068: the ratio of weights that RepDistiller (25, 50) and role-kd (50, 100) use.
    """
    distance, angle = (
        part(features_student, features_teacher, normalise=normalise, huber_offset=huber_offset, chunk=chunk)
        for part in (rkd_distance, rkd_angle)
    )
    return distance + 2 * angle


def _pairs(student: list[Tensor], teacher: list[Tensor], normalise: bool) -> list[tuple[Tensor, Tensor]]:
    pairs = vector_pairs(student, teacher)
    return [(unit(own), unit(wanted)) for own, wanted in pairs] if normalise else pairs


def _distances(points: Tensor, chunk: int) -> Tensor:
    """Return all distances (N, N), divided by the mean of those above 0.

    From differences: ‖x‖² + ‖y‖² - 2 x·y would leave rounding where rows are equal, and NaN from its root.
    """
    distances = torch.cat(_in_chunks(_distance_part, chunk, points))
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > TINY, mean, 1.0)


def _distance_part(run: slice, points: Tensor) -> Tensor:
    return torch.linalg.vector_norm(points[run, None] - points[None], dim=2)  # (chunk, N); gradient 0 at distance 0


def _angle_part(run: slice, student: Tensor, teacher: Tensor, huber_offset: float) -> Tensor:
    own, wanted = _cosines(student, run), _cosines(teacher, run)
    return _huber(own - wanted, huber_offset).sum()


def _cosines(points: Tensor, run: slice) -> Tensor:
    """Return the cosines (chunk, N, N) of the angles at the images of a run."""
    directions = unit(points[None] - points[run, None], dim=2)
    return directions @ directions.mT


def _huber(difference: Tensor, offset: float) -> Tensor:
    size = difference.abs()
    return torch.where(size < 1, difference.square() / 2, size - offset)


def _in_chunks(part: Callable[..., Tensor], chunk: int, *args: object) -> list[Tensor]:
    """Return `part` of each run of the first tensor's rows; what it computed on the way is dropped and made again."""
    count = len(args[0])  # type: ignore[arg-type]
    runs = [slice(start, start + chunk) for start in range(0, count, chunk)]
    return [checkpoint(part, run, *args, use_reentrant=False, preserve_rng_state=False) for run in runs]
