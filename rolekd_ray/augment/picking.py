"""Which of several candidate views of a batch are trained on: the hardest by a criterion.

The pool holds `runs` candidates of each of the batch's images; its position p = run * batch + place.
"""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax

from rolekd_ray.errors import ConfigError, unknown_name

CRITERIA = ("teacher_entropy", "student_entropy", "divergence", "dissimilarity")
"""What makes a candidate hard, see `hardness`."""

SCOPES = ("pool", "anchor")
"""Candidates compete with all of the pool, or with those of the same image."""


def needs_student(criterion: str) -> bool:
    """Return whether a criterion looks at the student's logits."""
    return criterion in ("student_entropy", "divergence")


@torch.no_grad()
def hardness(
    criterion: str, *, teacher: Tensor | None, student: Tensor | None, originals: Tensor | None, temperature: float
) -> Tensor:
    """Return how hard candidates are; higher is harder.

    `teacher_entropy`, `student_entropy`: of the network's probabilities at temperature 1, in nats. `divergence`:
    KL(teacher ‖ student) at the given temperature, in nats. `dissimilarity`: smallest squared L2 distance between the
    teacher's probabilities (temperature 1) of the candidate and of any original.

    Args:
        criterion: one of `CRITERIA`.
        teacher: the teacher's logits of the candidates, (M, K), any float type; not read by `student_entropy`.
        student: the student's, where `needs_student`.
        originals: the teacher's logits of the batch without the agents whose views are picked, (B, K); read by
            `dissimilarity` alone.
        temperature: of `divergence`, above 0.

    Returns:
        (M,) float32, 0 or more; finite for finite logits, however far apart.

    Raises:
        ConfigError: no such criterion.

    Source: 2012.02909 and its code `Good-DA-in-KD`, where p log p of a probability that underflows is NaN, which sorts
    as hardest; here it is 0.
    """
    if criterion == "teacher_entropy":
        assert teacher is not None
        return _entropy(teacher)
    if criterion == "student_entropy":
        assert student is not None
        return _entropy(student)
    if criterion == "divergence":
        assert teacher is not None and student is not None
        return _divergence(teacher.float() / temperature, student.float() / temperature)
    if criterion == "dissimilarity":
        assert teacher is not None and originals is not None
        # Not by matrix products: their rounding would order candidates that are close to an original
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cdist(softmax(teacher.float(), 1), softmax(originals.float(), 1), compute_mode=exact)
        return distances.amin(1).square()
    raise ConfigError(unknown_name("pick.criterion", "criterion", criterion, CRITERIA))


def _entropy(logits: Tensor) -> Tensor:
    return torch.special.entr(softmax(logits.float(), 1)).sum(1)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    log_t, log_s = log_softmax(teacher, 1), log_softmax(student, 1)
    return (log_t.exp() * (log_t - log_s)).sum(1).clamp_(min=0)  # rounding may go below


def kept_count(batch: int, runs: int, *, keep: int | None, fraction: float, scope: str = "pool") -> int:
    """Return how many candidates of a pool are kept.

    `keep` wins over `fraction`, which is rounded to the nearest number, halves up, and keeps at least one. Scope
    `anchor` keeps the same number for each image: the fraction is of its candidates, and `keep` counts all images'.

    Args:
        batch: images.
        runs: candidates of each.
        keep: how many, or None.
        fraction: of the pool, in (0, 1].
        scope: one of `SCOPES`.

    Raises:
        ConfigError: none or more than there are; a `keep` that does not give each image the same number.
    """
    pool = batch * runs
    if keep is None:
        if not 0 < fraction <= 1:
            raise ConfigError(f"pick.fraction: a share of the candidates, got {fraction}; expected above 0 and up to 1")
        return batch * _rounded(fraction * runs) if scope == "anchor" else _rounded(fraction * pool)
    if not 0 < keep <= pool:
        raise ConfigError(
            f"pick.keep: {batch} images with {runs} candidates each, got {keep}; expected 1 to {pool} candidates"
        )
    _check_same_for_all(keep, batch, scope)
    return keep


def _rounded(number: float) -> int:
    return max(1, int(number + 0.5))


def _check_same_for_all(count: int, batch: int, scope: str) -> None:
    if scope == "anchor" and count % batch:
        raise ConfigError(
            f"pick.keep: scope anchor keeps the same number for each of {batch} images, got {count}; "
            f"expected a multiple of {batch}"
        )


def pick(scores: Tensor, *, batch: int, count: int, scope: str) -> Tensor:
    """Return the positions of the hardest candidates in the pool; of equal ones, the first.

    A score that is not a number counts as hardest, so that the loss shows it.

    Args:
        scores: of the whole pool, (runs * batch,).
        batch: images.
        count: how many to keep; scope `anchor` keeps count / batch for each image.
        scope: one of `SCOPES`.

    Returns:
        (count,) int64, ascending.

    Raises:
        ConfigError: no such scope; more than the pool holds; scope `anchor`, and not a multiple of the batch.
    """
    if scope not in SCOPES:
        raise ConfigError(unknown_name("pick.scope", "scope", scope, SCOPES))
    if not 0 < count <= len(scores):
        raise ConfigError(f"pick.keep: {len(scores)} candidates, got {count}; expected 1 to {len(scores)}")
    _check_same_for_all(count, batch, scope)
    competing = scores.view(-1, batch) if scope == "anchor" else scores.view(-1, 1)
    each = count // competing.shape[1]
    order = competing.argsort(dim=0, descending=True, stable=True)[:each]
    positions = order * competing.shape[1] + torch.arange(competing.shape[1], device=scores.device)
    return positions.flatten().sort().values


def picked_ratio(scores: Tensor, positions: Tensor) -> Tensor:
    """Return how much harder the picked candidates are: their mean score over the pool's; a float64 scalar.

    1 or more for what `pick` returns, 1 only where all scores that compete are equal or all are kept; 1 for a pool
    whose scores are all 0. A ratio near 1 says that picking changes little.

    Source: `r` of 2012.02909 (ICLR 2022 submission), which found the gain from picking in the order of it.
    """
    mean = scores.double().mean()
    return torch.where(mean == 0, 1.0, scores[positions].double().mean() / mean)
