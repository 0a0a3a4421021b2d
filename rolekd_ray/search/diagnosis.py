"""The diagnosis of agents: what their views do to a trained teacher, beside what students learned under them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rolekd_ray.augment.picking import kept_count, needs_student
from rolekd_ray.augment.rank_correlation import FEWEST, RankCorrelation, rank_correlation
from rolekd_ray.augment.t_stddev_meter import GROUP_STEPS
from rolekd_ray.augment.view_guard import passes_guard
from rolekd_ray.config import RoleAgents, Settings
from rolekd_ray.errors import ConfigError, unknown_name
from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.policy.agents import chain_text, parse_chain
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.roles import Role
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.search.preflight import check_device, check_teachers
from rolekd_ray.storage import Place, places
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.networks import load_network, load_teacher
from rolekd_ray.training.teacher_answers import TeacherAnswers, new_teacher_answers
from rolekd_ray.training.view_diagnosis import Answers, ViewDiagnosis, diagnose_views

EPOCHS, BATCH = 10, 64
"""As published."""
NOTHING = "none"
"""The chain all others are compared with: x' is x."""
_GROUPS_PER_EPOCH = 4  # at least, where images are few and no batch size is given


@dataclass(frozen=True)
class DiagnosisRow:
    """One chain of agents; the test metrics are means over its students, None where none was given."""

    agents: str
    views: ViewDiagnosis
    students: int = 0
    test_loss: float | None = None
    test_accuracy: float | None = None

    @property
    def passes_guard(self) -> bool:
        """Whether a low T. stddev means anything."""
        return passes_guard(self.views.t_stddev, self.views.kept_beyond_chance)


@dataclass(frozen=True)
class Diagnosis:
    """All chains, lowest T. stddev first, and how their order agrees with their students' test losses.

    `correlation` is of the chains that pass the guard and have students; None if these are fewer than three. `images`
    and `batch_size` are what was shown, `epochs` times.
    """

    rows: tuple[DiagnosisRow, ...]
    teacher: str
    images: int
    epochs: int
    batch_size: int
    correlation: RankCorrelation | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; each row with its ratio to the identity and whether it passes the guard."""
        identity = next(row for row in self.rows if row.agents == NOTHING).views.t_stddev
        rows = []
        for row in self.rows:
            found = row.views.t_stddev
            own = {name: value for name, value in asdict(row).items() if name != "views"}
            ratio = asdict(found.ratio_to(identity)) if identity.score > 0 else None
            rows.append(own | row.views.to_dict() | {"ratio": ratio, "passes_guard": row.passes_guard})
        own = {name: value for name, value in asdict(self).items() if name not in ("rows", "correlation")}
        correlation = asdict(self.correlation) if self.correlation is not None else None
        return own | {"rows": rows, "correlation": correlation}


def diagnose(
    settings: Settings,
    agents: Sequence[str],
    *,
    teacher: Place | tuple[Place, ...],
    schedule: Schedule | None = None,
    students: Mapping[str, Sequence[Place]] | None = None,
    epochs: int = EPOCHS,
    batch_size: int | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> Diagnosis:
    """Return what chains of agents do to a trained teacher's answers, `none` always among them.

    Views are the student role's, of the images that final trainings see, with the settings of `agents.student`.

    Args:
        settings: data, base augmentation, the agents' settings, seed.
        agents: chains as text, `policy+cutmix`.
        teacher: its checkpoint, or those of an ensemble.
        schedule: its last student policy, and what evolved with it, is what the agent `policy` applies.
        students: checkpoints by chain, finished under it; they are evaluated on the test split.
        epochs: passes over the images.
        batch_size: None: 64, or fewer where images are so few that a group would hold more than a quarter of them.
        tell: is told what is being done.

    Raises:
        ConfigError: unknown or unsuitable chains; with all problems.
        CheckpointError: a checkpoint is missing, damaged, or of other images.
        DataError: the data cannot be read, or is too small for the batch size.
    """
    students = {_canonical(name): tuple(folders) for name, folders in (students or {}).items()}
    chains = list(dict.fromkeys([NOTHING, *map(_canonical, agents)]))
    _check(chains, settings, schedule, students)
    check_device(settings)
    asked = _opened(settings, teacher, schedule)
    pool = asked.source.pool
    batch_size = batch_size or max(1, min(BATCH, len(pool) // (_GROUPS_PER_EPOCH * GROUP_STEPS)))
    _check_sizes(chains, settings, schedule, batch_size)
    tested = {}
    for name, folders in students.items():
        tell(f"students of {name}")
        tested[name] = [evaluate_checkpoint(folder, settings.data) for folder in folders]
    tell(f"the teacher's answers to {len(chains)} views, {epochs} epochs")
    name = " + ".join(map(str, places(teacher)))
    found = diagnose_views(
        asked.plain,
        {chain: _views_of(chain, asked, settings, schedule, students) for chain in chains},
        pool,
        classes=asked.source.num_classes,
        epochs=epochs,
        batch_size=batch_size,
        seed=settings.seed,
        teacher=name,
    )
    rows = [DiagnosisRow(chain, views, **_means(tested.get(chain, ()))) for chain, views in found.items()]
    losses = {row.agents: row.test_loss for row in rows if row.test_loss is not None and row.passes_guard}
    enough = len(losses) >= FEWEST
    return Diagnosis(
        rows=tuple(sorted(rows, key=lambda row: row.views.t_stddev.score)),
        teacher=name,
        images=len(pool),
        epochs=epochs,
        batch_size=batch_size,
        correlation=rank_correlation({c: v.t_stddev for c, v in found.items()}, losses) if enough else None,
    )


def _opened(settings: Settings, teacher: Place | tuple[Place, ...], schedule: Schedule | None) -> TeacherAnswers:
    """Return the answers of a teacher that fits the data, to the images that final trainings see."""
    data = open_training_data(settings.data, train=settings.final.train)
    check_teachers(places(teacher), settings.data, data)
    space = schedule.space if schedule is not None else settings.search_space()
    sizes = {"num_classes": data.image_set.num_classes, "channels": data.image_set.channels}
    network = load_teacher(teacher, combine=settings.teacher.combine, model=None, **sizes)
    device = torch.device("cuda" if settings.slots.resources_per_worker.gpus else "cpu")
    return new_teacher_answers(settings, data, space, network, device)


def _canonical(chain: str) -> str:
    """Return a chain's text without spaces; as it is, if it cannot be read."""
    return chain_text(parse_chain(chain, "", [])) or chain


def _check(
    chains: Sequence[str], settings: Settings, schedule: Schedule | None, students: Mapping[str, Sequence[Place]]
) -> None:
    problems: list[str] = []
    policy = _last_policies(schedule)[0][1]  # all that an epoch has carry the same evolved settings
    criterion = settings.agents.student.evolved(policy.scalars, policy.choices).pick.criterion
    for text in chains:
        chain = parse_chain(text, f"agents {text!r}", problems)
        if "policy" in chain and (schedule is None or Role.STUDENT not in schedule.roles):
            problems.append(
                f"agents {text!r}: got no schedule of the student for the policy; expected one (--schedule)"
            )
        if "learned" in chain:
            problems.append(f"agents {text!r}: got learned, whose state is a member's; expected a chain without it")
        if "pick" in chain and needs_student(criterion) and not students.get(text):
            problems.append(
                f"agents {text!r}: got no student, whom pick.criterion {criterion} asks; expected one "
                f"(--students {text}=FOLDER)"
            )
    problems += [unknown_name("students", "agents", name, chains) for name in students if name not in chains]
    if problems:
        raise ConfigError(*problems)


def _check_sizes(chains: Sequence[str], settings: Settings, schedule: Schedule | None, batch_size: int) -> None:
    """Check that picking keeps as many views as there are images: T. stddev of fewer is not comparable with `none`.

    Raises:
        ConfigError: it does not.
    """
    policy = _last_policies(schedule)[0][1]
    pick = settings.agents.student.evolved(policy.scalars, policy.choices).pick
    if not any("pick" in parse_chain(text, "", []) for text in chains):
        return
    kept = max(2, kept_count(batch_size, pick.runs, keep=pick.keep, fraction=pick.fraction, scope=pick.scope))
    if kept != batch_size:
        raise ConfigError(
            f"agents.student.pick: keeps {kept} views of a batch of {batch_size} images, got runs {pick.runs}, "
            f"fraction {pick.fraction:g}, keep {pick.keep}; expected as many as there are images, as fraction "
            f"{1 / pick.runs:g} does: T. stddev of fewer or more cannot be compared"
        )


def _views_of(
    text: str, asked: TeacherAnswers, settings: Settings, schedule: Schedule | None,
    students: Mapping[str, Sequence[Place]],
) -> Answers | None:  # fmt: skip
    if text == NOTHING:
        return None
    agents: RoleAgents = settings.agents.student.model_copy(update={"chain": parse_chain(text, "", [])})
    chain = asked.source.views.chain(agents, _last_policies(schedule))
    student = None
    if chain.pick is not None and needs_student(chain.pick.criterion):
        network, _ = load_network(students[text][0], Role.STUDENT)
        student = fold_batchnorm(network).to(asked.source.images.device)
    return asked.of_chain(chain, student)


def _last_policies(schedule: Schedule | None) -> list[tuple[float, Policy]]:
    """Return the student's last policies; the chain that evolved with them gives way to the one that is asked for."""
    if schedule is None or Role.STUDENT not in schedule.roles:
        return [(1.0, Policy())]
    return [
        (weight, replace(policy, choices={k: v for k, v in policy.choices.items() if k != "agents"}))
        for weight, policy in schedule.policies_at(Role.STUDENT, schedule.epochs - 1)
    ]


def _means(tested: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not tested:
        return {}
    means = {name: sum(one[name] for one in tested) / len(tested) for name in ("test_loss", "test_accuracy")}
    return {"students": len(tested), **means}
