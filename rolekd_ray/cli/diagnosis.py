"""The verb about agents: diagnose."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from rolekd_ray.cli.console import out, progress, say
from rolekd_ray.cli.inputs import read_settings
from rolekd_ray.cli.options import Overrides, Seed
from rolekd_ray.errors import ConfigError
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, place

if TYPE_CHECKING:
    from rolekd_ray.config import Settings
    from rolekd_ray.policy.schedule import Schedule


def diagnose(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Takes configuration, teacher and schedule from this run.")
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", metavar="CONFIG", help="Instead of a run; default: quickstart.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    seed: Seed = None,
    agents: Annotated[
        list[str],
        typer.Option(
            metavar="CHAIN", help="Agents, as policy+cutmix; default: the schedule's last. Repeatable; none always is."
        ),
    ] = [],  # noqa: B006
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="FOLDER",
            help="Its checkpoint; default: the run's, or the configuration's. Repeatable: an ensemble.",
        ),
    ] = [],  # noqa: B006
    schedule: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Its last student policy is what policy applies; default: the run's."),
    ] = None,
    students: Annotated[
        list[str],
        typer.Option(
            metavar="CHAIN=FOLDER", help="A student that learned under these agents, to be tested. Repeatable."
        ),
    ] = [],  # noqa: B006
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Default: 64, or fewer where images are few. Its level depends on it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON.")] = False,
) -> None:
    """Rank agents by what their views do to a trained teacher; this measures no fitness."""
    if run is not None and config is not None:
        raise ConfigError(f"--config: got {config} beside the run {run}; expected one of them")
    from rolekd_ray.search.run_directory import CONFIG, open_run

    directory = open_run(place(run)) if run is not None else None
    source = str(directory.path / CONFIG) if directory is not None else config or "quickstart"
    settings = read_settings(source, overrides, seed)
    teachers = tuple(map(place, teacher)) or settings.teacher.checkpoints
    if not teachers and directory is not None:
        teachers = (directory.teacher,)
    if not teachers:
        raise ConfigError("--teacher: got none; expected a trained teacher's checkpoint, or a run that has one")

    from rolekd_ray.reporting.diagnosis_table import diagnosis_notes, diagnosis_table
    from rolekd_ray.search.diagnosis import diagnose as measure

    with progress.status("opening") as status:
        replayed = _schedule(schedule, directory.schedule if directory is not None else None)
        found = measure(
            settings,
            agents or [_last_chain(settings, replayed)],
            teacher=teachers,
            schedule=replayed,
            students=_by_chain(students),
            epochs=epochs,
            batch_size=batch_size,
            tell=status.update if progress.is_terminal else lambda text: say(progress, text),
        ).to_dict()
    if as_json:
        say(out, json.dumps(found))
        return
    out.print(diagnosis_table(found))
    for line in diagnosis_notes(found):
        say(out, line)


def _schedule(given: str | None, of_run: Place | None) -> "Schedule | None":
    from rolekd_ray.policy.schedule import load_schedule

    if given is not None:
        return load_schedule(given)
    return load_schedule(of_run) if of_run is not None and of_run.is_file() else None


def _last_chain(settings: "Settings", schedule: "Schedule | None") -> str:
    """Return the student's chain as a schedule ends with it, or the settings', if that says nothing of it."""
    from rolekd_ray.policy.agents import chain_text

    chain = chain_text(settings.agents.student.chain)
    if schedule is None or Role.STUDENT not in schedule.roles:
        return chain
    return schedule.policy_at(Role.STUDENT, schedule.epochs - 1).choices.get("agents", chain)


def _by_chain(students: list[str]) -> dict[str, list[Place]]:
    """Return checkpoints by chain from `CHAIN=FOLDER`.

    Raises:
        ConfigError: with every text that is none.
    """
    found: dict[str, list[Place]] = {}
    problems = []
    for text in students:
        chain, equals, folder = text.partition("=")
        if not (chain and equals and folder):
            problems.append(f"--students: got {text!r}; expected CHAIN=FOLDER, as policy+cutmix=net")
        found.setdefault(chain, []).append(place(folder))
    if problems:
        raise ConfigError(*problems)
    return found
