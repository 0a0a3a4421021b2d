"""Picking in a training: candidates are made and scored by the networks, the hardest are kept and dealt out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rolekd_ray.augment.picking import hardness, kept_count, needs_student, pick, picked_ratio
from rolekd_ray.config import PickSettings
from rolekd_ray.training.batch import Batch, decides
from rolekd_ray.training.sharding import Sharding

Scorer = Callable[[Tensor], Tensor]
"""Maps a view of this worker's places to logits, without gradient and without a trace in the network."""


@dataclass(frozen=True, eq=False)
class Picks:
    """The candidates that are kept, K of a pool of `runs` per place.

    Attributes:
        places: of the batch, whose candidates they are, (k,) int64.
        labels: theirs, (k,) int64, or class probabilities (k, classes) float32 if candidates are mixed.
        for_student: this worker's share of them, as the student network sees it.
        for_teacher: as the teacher network sees it; the same tensor where both see one view.
        logits_teacher: what the teacher said of all of them when they were scored, (k, classes).
        ratio: mean score of the kept over the pool's, a scalar of at least 1: how much there was to choose.
    """

    places: Tensor
    labels: Tensor
    for_student: Tensor
    for_teacher: Tensor
    logits_teacher: Tensor
    ratio: Tensor


def picked(
    batch: Batch, settings: PickSettings, view_mode: str, *, teach: Scorer, learn: Scorer, sharding: Sharding,
    temperature: float,
) -> Picks:  # fmt: skip
    """Score all candidates of a batch and keep the hardest; the same ones on every worker.

    Args:
        batch: makes candidates.
        settings: how many, which and by what.
        view_mode: which role's view feeds which network.
        teach: the teacher's logits; asked once per candidate.
        learn: the student's; asked only if the criterion wants them.
        sharding: this worker's place.
        temperature: of the criterion `divergence`.
    """
    count = len(batch)
    pairs = [batch.seen_by(view_mode, candidate=run) for run in range(settings.runs)]
    by_teacher = torch.cat([sharding.gather(teach(view), count) for _, view in pairs])
    by_student = originals = None
    if needs_student(settings.criterion):
        by_student = torch.cat([sharding.gather(learn(view), count) for view, _ in pairs])
    if settings.criterion == "dissimilarity":
        originals = sharding.gather(teach(batch.seen_by(view_mode, plain=True)[1]), count)
    scores = hardness(
        settings.criterion, teacher=by_teacher, student=by_student, originals=originals, temperature=temperature
    )
    keep = settings.keep
    if keep is not None:
        keep = min(keep, count * settings.runs)  # an epoch's last batch may be short
    wanted = kept_count(count, settings.runs, keep=keep, fraction=settings.fraction, scope=settings.scope)
    wanted = max(wanted, min(2, len(scores)))  # as of a whole batch: BatchNorm cannot use one image
    kept = pick(scores, batch=count, count=wanted, scope=settings.scope)
    for_student, for_teacher = _share(batch, view_mode, pairs, kept, sharding)
    labels = torch.cat([batch.targets(decides(view_mode), candidate=run) for run in range(settings.runs)])[kept]
    ratio = picked_ratio(scores, kept)
    return Picks(kept % count, labels, for_student, for_teacher, by_teacher[kept], ratio)


def _share(
    batch: Batch, view_mode: str, pairs: list[tuple[Tensor, Tensor]], kept: Tensor, sharding: Sharding
) -> tuple[Tensor, Tensor]:
    """Return this worker's share of the kept ones; candidates of other workers' places are made again."""
    one_view, rows = pairs[0][0] is pairs[0][1], kept
    if sharding.workers > 1:
        own, count = sharding.rows(kept), len(batch)  # ascending, so in order of their runs
        pairs = [batch.seen_by(view_mode, own[own // count == run] % count, candidate=run) for run in range(len(pairs))]
        rows = torch.arange(len(own), device=own.device)
    for_student = _joined([view for view, _ in pairs], rows)
    return for_student, for_student if one_view else _joined([view for _, view in pairs], rows)


def _joined(views: Sequence[Tensor], rows: Tensor) -> Tensor:
    return torch.cat(list(views))[rows].contiguous(memory_format=torch.channels_last)
