"""A cheap look at policies before a search trains with them: which of many candidates it begins with."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

import torch
from torch import nn

from rolekd_ray.augment.picking import needs_student
from rolekd_ray.augment.t_stddev import TStddev, check_comparable
from rolekd_ray.augment.t_stddev_meter import GROUP_STEPS
from rolekd_ray.augment.view_guard import FLOOR, passes_guard
from rolekd_ray.config import Settings
from rolekd_ray.policy.jobs import Policies
from rolekd_ray.policy.policy import Policy, random_policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.initial import sobol_policies
from rolekd_ray.storage import Place
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.networks import load_teacher
from rolekd_ray.training.teacher_answers import TeacherAnswers, new_teacher_answers
from rolekd_ray.training.view_diagnosis import Answers, ViewDiagnosis, diagnose_views

Candidate = TypeVar("Candidate")

CANDIDATES_PER_MEMBER = 4
"""So many policies are drawn for each that is kept."""
IMAGES = 1000
"""So many training images are looked at, at most, once."""
GROUPS = 10
"""Into so many groups they are divided."""


def filtered(
    candidates: Sequence[Candidate],
    score: Sequence[TStddev],
    kept: Sequence[float],
    count: int,
    floor: float = FLOOR,
) -> list[Candidate]:
    """Return the candidates to begin with: of those that pass the guard, the ones with the lowest T. stddev, in order.

    If too few pass, the ones that do not are taken from those that keep most of the teacher's answers downwards. Of
    equal ones the first. T. stddev chooses where a search begins, never what it keeps: that is validation's to say.

    Args:
        candidates: such as policies.
        score: of each.
        kept: of each, beyond chance, see `passes_guard`.
        count: how many to return, at most as many as there are.
        floor: of the guard.

    Raises:
        ConfigError: scores that cannot be compared.
    """
    assert len(candidates) == len(score) == len(kept) >= count > 0, (len(candidates), len(score), len(kept), count)
    check_comparable({f"candidate {place}": one for place, one in enumerate(score)})
    passing = [place for place, one in enumerate(score) if passes_guard(one, kept[place], floor)]
    failing = [place for place in range(len(candidates)) if place not in passing]
    passing.sort(key=lambda place: score[place].score)
    failing.sort(key=lambda place: -kept[place])
    return [candidates[place] for place in (passing + failing)[:count]]


def measured_policies(
    candidates: Sequence[Policy],
    teacher: nn.Module,
    *,
    settings: Settings,
    data: TrainingData,
    space: SearchSpace,
    device: torch.device,
) -> list[ViewDiagnosis]:
    """Return what a student's policies do to a finished teacher's answers: one look at `IMAGES` images.

    Each is looked at in the student's chain, or the one that it chooses itself; a learned agent in it, which has not
    learned yet, and picking by a student, whom there is not yet, are left out; other picking keeps one view per image,
    whatever `pick.keep` and `pick.fraction` say.

    Args:
        candidates: of the student.
        teacher: finished.
        settings: of the run.
        data: its images; those shown are spread over what is trained on, in an order of the run's seed.
        space: the candidates'.
        device: where the teacher answers.

    Raises:
        DataError: too few images.
    """
    asked = new_teacher_answers(settings, data, space, teacher, device)
    pool = asked.source.pool  # spread over it: folders of images are in order of their classes
    indices = pool[torch.linspace(0, len(pool) - 1, min(IMAGES, len(pool)), device=pool.device).long()]
    found = diagnose_views(
        asked.plain,
        {str(place): _answers(asked, settings, policy) for place, policy in enumerate(candidates)},
        indices,
        classes=data.image_set.num_classes,
        epochs=1,
        batch_size=max(2, len(indices) // (GROUPS * GROUP_STEPS)),  # picking keeps two at least
        seed=settings.seed,
        teacher="the teacher",
    )
    return list(found.values())


def _answers(asked: TeacherAnswers, settings: Settings, policy: Policy) -> Answers:
    chain = asked.source.views.chain(settings.agents.student, [(1.0, policy)])
    pick = None if chain.pick is None or needs_student(chain.pick.criterion) else chain.pick
    if pick is not None:  # the level of T. stddev depends on the rows of a group, so all candidates have as many
        pick = pick.model_copy(update={"keep": None, "fraction": 1 / pick.runs})
    return asked.of_chain(replace(chain, learned=None, pick=pick))


def filtered_policies(
    candidates: Sequence[Policy],
    count: int,
    teacher: nn.Module,
    *,
    settings: Settings,
    data: TrainingData,
    space: SearchSpace,
    device: torch.device,
) -> list[Policy]:
    """Return `count` of the candidates: `filtered` by what `measured_policies` finds; a function of all it is given."""
    found = measured_policies(candidates, teacher, settings=settings, data=data, space=space, device=device)
    return filtered(candidates, [one.t_stddev for one in found], [one.kept_beyond_chance for one in found], count)


def filtered_first(settings: Settings, teacher: Place | tuple[Place, ...]) -> tuple[Policies, ...]:
    """Return the student's first policies for a search: the best of four times as many, by a finished teacher.

    Args:
        settings: of the run; `search.initial_policies` says how they are drawn.
        teacher: its checkpoint, or those of an ensemble.

    Raises:
        DataError: too few images.
        CheckpointError: the teacher cannot be read.
    """
    space, search, device = settings.search_space(), settings.search, torch.device("cpu")
    drawn = search.population_size * CANDIDATES_PER_MEMBER
    if search.initial_policies == "sobol":
        candidates = [at[Role.STUDENT] for at in sobol_policies(space, (Role.STUDENT,), drawn, settings.seed)]
    else:
        rngs = (Random(f"{settings.seed}/initial/filter/{number}") for number in range(drawn))
        candidates = [random_policy(space, Role.STUDENT, rng) for rng in rngs]
    data = open_training_data(settings.data, train=settings.data.train)
    network = load_teacher(
        teacher,
        combine=settings.teacher.combine,
        num_classes=data.image_set.num_classes,
        channels=data.image_set.channels,
    )
    kept = filtered_policies(
        candidates, search.population_size, network, settings=settings, data=data, space=space, device=device
    )
    return tuple({Role.STUDENT: policy} for policy in kept)
