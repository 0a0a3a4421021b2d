"""What the networks see of a batch in one step: the agents' view, and beside it the plain one where two are wanted."""

from dataclasses import dataclass

from torch import Tensor

from rolekd_ray.training.batch import Batch, decides
from rolekd_ray.training.picks import Scorer, picked
from rolekd_ray.training.sharding import Sharding


@dataclass(frozen=True, eq=False)
class Branch:
    """Images that both networks are shown.

    Attributes:
        for_student: what the student network sees of this worker's rows.
        for_teacher: what the teacher network sees; the same tensor where that is one view.
        count: rows of all workers.
        labels: of all of them, (count,) int64, or class probabilities (count, K) where images are mixed.
        indices: places in the dataset, (count,).
        logits_teacher: the teacher's answers, (count, K), where they are known already.
        picked_ratio: see `Picks.ratio`; None where nothing was picked.
    """

    for_student: Tensor
    for_teacher: Tensor
    count: int
    labels: Tensor
    indices: Tensor
    logits_teacher: Tensor | None = None
    picked_ratio: Tensor | None = None


def branches_of(
    batch: Batch, view_mode: str, *, plain: bool, teach: Scorer, learn: Scorer, sharding: Sharding, temperature: float,
    keep_answers: bool,
) -> list[Branch]:  # fmt: skip
    """Return the branches of a step: the agents' view, after the plain view if that is wanted, too.

    Args:
        batch: the images.
        view_mode: which role's view feeds which network.
        plain: whether there are two; where the agents change nothing, both are alike (the equal-compute control).
        teach: the teacher's logits, for picking.
        learn: the student's, for picking.
        sharding: this worker's place.
        temperature: of the run.
        keep_answers: take the teacher's answers from the scoring of candidates; without, it will be run again.
    """
    by = decides(view_mode)
    found = [Branch(*batch.seen_by(view_mode, plain=True), len(batch), batch.labels, batch.indices)] if plain else []
    settings = batch.chains[by].pick
    if settings is None:
        return [*found, Branch(*batch.seen_by(view_mode), len(batch), batch.targets(by), batch.indices)]
    kept = picked(batch, settings, view_mode, teach=teach, learn=learn, sharding=sharding, temperature=temperature)
    answers = kept.logits_teacher if keep_answers else None
    indices = batch.indices[kept.places]
    of_kept = Branch(kept.for_student, kept.for_teacher, len(indices), kept.labels, indices, answers, kept.ratio)
    return [*found, of_kept]
