"""Whole runs: the searches a protocol asks for, the trainings after them, the table at the end.

Every stage finds what an earlier try left behind and goes on from there, so `resume` is running again.
"""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console

from rolekd_ray.config import Settings
from rolekd_ray.errors import ConfigError, RunDirectoryError
from rolekd_ray.files import write_atomically
from rolekd_ray.policy.lineage import replacements, schedule_of, shortfalls
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule, join, load_schedule, schedule_text
from rolekd_ray.reporting.console import SearchProgress
from rolekd_ray.reporting.history import History
from rolekd_ray.reporting.tensorboard import TensorBoard
from rolekd_ray.roles import Role
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.search.ledger import Observer
from rolekd_ray.search.lock import take_lock
from rolekd_ray.search.log import has_log, read_population
from rolekd_ray.search.population_search import best_state, search_population
from rolekd_ray.search.preflight import check_device, check_inputs, check_search
from rolekd_ray.search.run_directory import RUN_LOCK, RunDirectory, create_run, open_run
from rolekd_ray.storage import Place, check_storage, place, places, relative
from rolekd_ray.training.checkpoint import has_checkpoint
from rolekd_ray.training.conditions import condition_lines, describe_run_images
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.losses import from_labels, needs_frozen_teacher, teacher_role_counts, without_agents


@dataclass
class Outcome:
    """What a run came to. `rows` is the final table.

    `dropped` says which members did not reach the goal and why, `replaced` whose place went to a copy of another.
    """

    schedule: Schedule
    best_state: Place
    dropped: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def start_run(
    settings: Settings,
    *,
    storage: Place | str = "runs",
    name: str | None = None,
    verb: Literal["run", "search"] = "run",
    local: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Start a run and see it through: `rolekd run` and `rolekd search` as a call.

    Args:
        settings: from `load_settings`.
        storage: folder of run directories, or `s3://bucket/prefix`.
        name: of the new one; None: the moment of the start.
        verb: `search` for the population search alone.
        local: everything in this process, without Ray.
        console: where progress is shown; None: nowhere.

    A cluster whose head is lost ends this process, with exit code 1: nothing waits for Ray otherwise (`head_watch`).

    Raises:
        InputError: settings, data, a given teacher or the run directory are wrong; nothing was written.
        RolekdError: what went wrong later; `resume_run` can go on from there.
    """
    data = check_inputs(settings, local=local, evaluated=verb == "run")
    check_search(settings)
    storage, console = place(storage), console or Console(quiet=True)
    images = describe_run_images(data, settings)
    for line in condition_lines(images["search"]):
        console.print(line, highlight=False, soft_wrap=True)
    with hardware(settings, local=local, storage=storage):
        run = create_run(storage, name, settings, verb=verb, images=images)
        return Pipeline(run, local=local, console=console).execute(verb)


def resume_run(
    path: Place | str, *, epochs: int | None = None, local: bool = False, console: Console | None = None
) -> Outcome:
    """Go on with a run after a stop or a crash, or prolong its search to `epochs`: `rolekd resume` as a call.

    Raises:
        RunDirectoryError: it is not a run directory, or another process is writing it.
        RolekdError: what else went wrong.
    """
    run = open_run(place(path))
    pipeline = Pipeline(run, local=local, console=console or Console(quiet=True))
    return pipeline.execute(run.environment()["verb"], epochs=epochs)


@contextmanager
def hardware(settings: Settings, *, local: bool, storage: Place) -> Iterator[None]:
    """Start or join Ray, unless `local`, and refuse what does not fit before anything of a run is written.

    Raises:
        ConfigError: slots or members do not fit on what there is.
        StorageError: a node that slots would train on does not see the storage, or nobody does.
    """
    check_storage(storage)
    if local:
        check_device(settings)
        yield
        return
    from rolekd_ray.search.cluster import check_nodes_see, ray_session, slot_count

    with ray_session():
        slot_count(settings.slots, settings.search.population_size)
        check_nodes_see(storage, settings.slots)
        yield


class Pipeline:
    """Runs, or goes on with, one run directory.

    Args:
        run: its directory.
        local: everything in this process, without Ray.
        console: where progress is shown.
    """

    def __init__(self, run: RunDirectory, *, local: bool, console: Console):
        self.run, self.local, self.console = run, local, console
        self.settings = run.settings()
        self.dropped: list[str] = []
        self.replaced: list[str] = []

    def execute(self, verb: str, *, epochs: int | None = None) -> Outcome:
        """Do what the run was started for: `search`, or `run`, which adds final trainings and evaluation.

        Args:
            verb: `search` or `run`.
            epochs: prolong the (student's) search to this length; None: as the settings say.

        Raises:
            RunDirectoryError: another process is writing the run.
            RolekdError: what else went wrong; `resume` can go on from there.
        """
        with take_lock(self.run.path / RUN_LOCK):
            if epochs is not None:
                self._prolong(epochs)
            self.run.sweep()
            if has_log(self.run.path) or has_log(self.run.path / "teacher"):
                self.run.note_resume(self.settings)
            # A run may go on on another machine
            with hardware(self.settings, local=self.local, storage=self.run.path), self._watching_head():
                return self._execute(verb)

    def _watching_head(self) -> AbstractContextManager[None]:
        if self.local:
            return nullcontext()
        from rolekd_ray.search.head_watch import watch_head

        return watch_head(f"rolekd resume {shlex.quote(str(self.run.path))}")

    def _execute(self, verb: str) -> Outcome:
        outcome = self.search()
        if verb == "run":
            outcome.rows = self.finish(outcome.schedule)
        return outcome

    def _prolong(self, epochs: int) -> None:
        least = self.settings.search.epochs
        if epochs < least:
            raise ConfigError(f"--epochs: got {epochs}; expected at least {least}, the run's goal")
        search = self.settings.search.model_copy(update={"epochs": epochs})
        self.settings = self.settings.model_copy(update={"search": search})
        self.run.set_settings(self.settings)
        if epochs > least:
            self.run.schedule.unlink(missing_ok=True)  # no longer the best: until the end, the log knows better

    def search(self) -> Outcome:
        """Search schedules by the protocol; write `best/schedule.yaml`."""
        if self.settings.search.protocol == "coevolve":
            schedule, population = self._population(self.run.path, tuple(Role), "teacher and student")
        else:
            schedule, population = self._sequential()
        write_atomically(self.run.schedule, schedule_text(schedule))
        return Outcome(schedule.firing(), best_state(self.run.path, population), self.dropped, self.replaced)

    def _sequential(self) -> tuple[Schedule, Population]:
        """Search the teacher's schedule, train the teacher by it, search the student's with the teacher frozen.

        Source: role-wise augmentation (arXiv 2004.08861), as its code and file names show it.
        """
        found, teacher = [], self.settings.teacher.checkpoint
        if teacher is None and teacher_role_counts(self.settings.distill):
            folder, teacher = self.run.path / "teacher", self.run.teacher.absolute()
            file = folder / "schedule.yaml"
            if not file.exists():
                # A prolonged run prolongs the student's search alone
                schedule, _ = self._population(folder, (Role.TEACHER,), "teacher", prolong=False)
                write_atomically(file, schedule_text(schedule))
            found = [load_schedule(file)]
            if not needs_frozen_teacher(self.settings.distill.losses):
                teacher = None
            elif not has_checkpoint(teacher):
                self.train([("teacher", FinalTraining(self.settings, Role.TEACHER, teacher, found[0]))])
        fixed = found[0].stretched(self.settings.search.epochs) if found else None
        schedule, population = self._population(self.run.path, (Role.STUDENT,), "student", teacher=teacher, fixed=fixed)
        return join([*found, schedule]), population

    def _population(
        self, folder: Place, roles: tuple[Role, ...], title: str, **options: Any
    ) -> tuple[Schedule, Population]:
        observers: list[Observer] = [
            SearchProgress(self.console, f"search: {title}"),
            History(folder),
            TensorBoard(folder),
        ]
        schedule, population = search_population(
            folder, self.settings, roles, local=self.local, observers=observers, **options
        )
        self.dropped += [f"{title}: {line}" for line in shortfalls(population)]
        self.replaced += [f"{title}: {line}" for line in replacements(population)]
        return schedule, population

    def finish(self, schedule: Schedule) -> list[dict[str, Any]]:
        """Train teacher and students to the end, evaluate them on validation and test, write `results.json`."""
        best, settings = self.run.schedule.parent.absolute(), self.settings
        teacher = settings.teacher.checkpoint
        if not needs_frozen_teacher(settings.distill.losses):
            teacher = None
        elif teacher is None:
            teacher = best / "teacher"
            if not has_checkpoint(teacher):
                self.train([("teacher", FinalTraining(settings, Role.TEACHER, teacher, schedule.only(Role.TEACHER)))])
        student = Role.STUDENT
        arms = {
            "student alone": FinalTraining(from_labels(settings), student, best / "student_alone"),
            "student distilled, no augmentation": FinalTraining(
                without_agents(settings), student, best / "student_plain", teacher=teacher
            ),
            "student distilled, found schedule": FinalTraining(settings, student, best / "student", schedule, teacher),
        }
        self.train(list(arms.items()))
        folders = {"teacher": teacher} | {name: arm.folder for name, arm in arms.items()}
        rows = [
            {"network": name, "checkpoint": ", ".join(relative(each, self.run.path) for each in places(folder))}
            | evaluate_checkpoint(folder, settings.data, combine=settings.teacher.combine)
            for name, folder in folders.items()
            if folder is not None
        ]
        write_atomically(self.run.results, json.dumps(rows, indent=2) + "\n")
        return rows

    def train(self, trainings: Sequence[tuple[str, FinalTraining]]) -> None:
        """Train networks to the end: side by side on Ray, one after the other without."""
        names = ", ".join(name for name, _ in trainings)
        with self.console.status(f"training: {names}"):
            results = self._train([training for _, training in trainings])
        for (name, _), metrics in zip(trainings, results):
            self.console.print(
                f"trained {name}: validation accuracy {metrics['validation_accuracy']:.4f}, {metrics['seconds']:.1f} s",
                highlight=False,
            )

    def _train(self, trainings: Sequence[FinalTraining]) -> list[dict[str, Any]]:
        if self.local:
            return list(map(train_final, trainings))
        from rolekd_ray.search.final_trainings import train_on_ray

        return train_on_ray(trainings, self.settings.slots, storage=self.run.path.absolute() / "tune")


def notes_on(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a person should know of a finished run's table: whether distillation did harm.

    Args:
        rows: of `Outcome`; none after a search alone.
    """
    accuracy = {row["network"]: row["validation_accuracy"] for row in rows}
    alone, distilled = accuracy.get("student alone"), accuracy.get("student distilled, found schedule")
    if alone is None or distilled is None or distilled >= alone:
        return []
    plain = accuracy.get("student distilled, no augmentation", distilled)
    remedy = "other losses, weights or temperatures may fit this pair of networks (docs/methods.md)"
    if plain >= alone:
        remedy = (
            f"without augmentation it did not ({plain:.4f}), so the found schedule did harm: a longer search, more "
            "members or validation images, or other ops may help"
        )
    return [
        f"distillation ended below the student alone ({distilled:.4f} against {alone:.4f} validation accuracy): "
        f"{remedy}; one seed is no proof"
    ]


def schedule_so_far(run: RunDirectory) -> Schedule:
    """Return a run's best schedule: the finished one, or of the best member so far.

    Raises:
        RunDirectoryError: nothing has been searched yet.
    """
    if run.schedule.exists():
        return load_schedule(run.schedule)
    found = []
    for folder in (run.path / "teacher", run.path):
        population = read_population(folder) if has_log(folder) else None
        if population is not None and population.scores:
            found.append(schedule_of(population, *population.best()))
    if not found:
        raise RunDirectoryError(f"{run.path}: no member has a score yet; expected at least one")
    return join(found)
