"""Trainings that build on one another: teacher assistants, born-again generations, a residual assistant.

A chain is a list of final trainings, each of which may learn from the one before. All have the run's data, schedule,
losses and length; they differ in network, seed and teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import Settings
from rolekd_ray.errors import CheckpointError, ConfigError
from rolekd_ray.models.residual import JOIN
from rolekd_ray.storage import Place
from rolekd_ray.training.final import FinalTraining, train_final


def chain_of(
    training: FinalTraining, *, assistants: Sequence[str] = (), generations: int = 1, residual: str | None = None
) -> list[FinalTraining]:
    """Return the trainings that lead to a student's checkpoint, in order; the last one's folder is the student's.

    The teacher teaches the first assistant, each assistant the next, the last one the student's first generation, each
    generation the next: of what is left out here, nobody stands between. Checkpoints on the way are kept beside the
    student's, in `<folder>.chain/<number>-<model>`. The last generation is the result, whether or not it is the best:
    the test file may not choose, and validation images chose the schedule.

    Initial weights and the order of images follow from the run's seed for the first generation, so it equals the
    student that is trained without a chain, its teacher apart; for assistants and later generations from a seed of
    their own, which follows from the run's and their place.

    Args:
        training: of the student, as it would be without a chain.
        assistants: networks between teacher and student, as a rule from large to small.
        generations: of the student; the first learns from the teacher, or from labels, if there is none.
        residual: network that learns, once the student is finished, what it lacks of `training.teacher`; the result is
            the sum of both, `<student>+<residual>`, see `ResidualSum`.

    Raises:
        ConfigError: there is no teacher, and assistants or the residual would need one; or fewer than 1 generation.

    Source: teacher assistants: Mirzadeh et al., arXiv 1902.03393. Generations: Furlanello et al., arXiv 1805.04770;
    theirs learn from the one before by the teacher's outputs and labels, ours by the losses that are configured. The
    residual: Gao et al., arXiv 2002.09168, see `ResidualSum` for what is ours. Of the first two, what is said here is
    recalled, not read again.
    """
    _check(training, assistants, generations, residual)
    student = training.settings.student.model
    links: list[tuple[str, str | None]] = [
        *((model, f"assistant {number}") for number, model in enumerate(assistants, start=1)),
        *((student, f"generation {number}" if number > 1 else None) for number in range(1, generations + 1)),
    ]
    beside = training.folder.with_name(f"{training.folder.name}.chain")
    trainings: list[FinalTraining] = []
    for number, (model, key) in enumerate(links, start=1):
        settings = _settings(training.settings, model, key)
        teacher = trainings[-1].folder if trainings else training.teacher
        trainings.append(replace(training, settings=settings, folder=beside / f"{number}-{model}", teacher=teacher))
    if residual is None:
        trainings[-1] = replace(trainings[-1], folder=training.folder)
    else:
        settings = _settings(training.settings, f"{student}{JOIN}{residual}", None)
        trainings.append(replace(training, settings=settings, residual_of=trainings[-1].folder))
    return trainings


def _check(training: FinalTraining, assistants: Sequence[str], generations: int, residual: str | None) -> None:
    problems = []
    if assistants and not training.teacher:
        problems.append(
            f"assistants: got {', '.join(assistants)} without a teacher; expected one (--teacher), from which the "
            "first assistant learns"
        )
    if residual and not training.teacher:
        problems.append(
            f"residual: got {residual} without a teacher; expected one (--teacher): the residual is what the student "
            "lacks of it"
        )
    if generations < 1:
        problems.append(f"generations: got {generations}; expected at least 1")
    if problems:
        raise ConfigError(*problems)


def check_chain(trainings: Sequence[FinalTraining]) -> None:
    """Check that each training's folder is free, or holds what this very training left when it was finished.

    Raises:
        CheckpointError: others lie there; names all of them.
    """
    plans: dict[Place, dict[str, Any]] = {}
    problems = []
    for training in trainings:
        plans[training.folder] = plan = training.plan(plans)
        if training.folder.exists() and not training.finished(plan):
            problems.append(f"{training.folder}: exists and is not this training; expected a new folder")
    if problems:
        raise CheckpointError(*problems)


def train_chain(
    trainings: Sequence[FinalTraining], begin: Callable[[FinalTraining], None] = lambda training: None
) -> list[dict[str, Any]]:
    """Train networks to the end, one after the other, or take what is finished; return the checkpoints' metrics.

    A chain that was cut short goes on where it was, within a training, too, and ends with the same weights.

    Args:
        trainings: from `chain_of`.
        begin: hears of each before it begins.

    Raises:
        TrainingError: a loss is not finite.
        StorageError: a checkpoint cannot be written.
    """
    metrics = []
    for training in trainings:
        begin(training)
        metrics.append(train_final(training))
    return metrics


def _settings(settings: Settings, model: str, key: str | None) -> Settings:
    """Return the settings with another student; and, by a key, with a seed of its own."""
    student = settings.student.model_copy(update={"model": model})
    seed = settings.seed if key is None else stream_key(settings.seed, "chain", key) % 2**63
    return settings.model_copy(update={"student": student, "seed": seed})
