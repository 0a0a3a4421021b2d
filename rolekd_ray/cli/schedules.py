"""Verbs about schedules: export and import."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rolekd_ray.cli.console import write
from rolekd_ray.cli.inputs import varied
from rolekd_ray.cli.options import (
    ExportFormat,
    ImportFormat,
    Output,
    Variant,
)
from rolekd_ray.errors import InputError
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, children, place

if TYPE_CHECKING:
    from rolekd_ray.policy.schedule import Schedule


def export_(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a schedule file.")],
    format: Annotated[ExportFormat, typer.Option()] = ExportFormat.YAML,
    output: Output = None,
    role: Annotated[Role, typer.Option(help="Whose policies, for pba and torchvision.")] = Role.STUDENT,
    variant: Annotated[Variant, typer.Option(help="flattened: order lost; last: its last policy.")] = Variant.ORDERED,
) -> None:
    """The best schedule, for others to use."""
    from rolekd_ray.policy.formats import export_pba, export_ray, schedule_spec
    from rolekd_ray.policy.schedule import schedule_text

    schedule = varied(_best_schedule(place(run)), variant)
    if role not in schedule.roles and format in (ExportFormat.PBA, ExportFormat.TORCHVISION):
        raise InputError(f"--role: got {str(role)!r}; expected {' or '.join(schedule.roles)}, which the schedule holds")
    if format == ExportFormat.TORCHVISION:
        from rolekd_ray.augment.torchvision_transform import export_source

        text = export_source(schedule_spec(schedule, role) | _fill(place(run)))
    else:
        writers: dict[ExportFormat, Callable[[], str]] = {
            ExportFormat.YAML: lambda: schedule_text(schedule),
            ExportFormat.PBA: lambda: export_pba(schedule, role),
            ExportFormat.RAY: lambda: export_ray(schedule),
        }
        text = writers[format]()
    write(text, output)


def import_(
    file: Annotated[Path, typer.Argument(help="The published file.")],
    format: Annotated[ImportFormat, typer.Option()],
    epochs: Annotated[int, typer.Option(min=1, help="Length of the search that wrote it; the file does not say.")],
    output: Output = None,
    role: Annotated[Role, typer.Option(help="Whose policies they shall be.")] = Role.STUDENT,
) -> None:
    """Bring in a schedule that others published."""
    from rolekd_ray.errors import ScheduleError
    from rolekd_ray.files import read_text
    from rolekd_ray.policy.formats import import_schedule
    from rolekd_ray.policy.schedule import schedule_text

    text = read_text(file, ScheduleError)
    write(schedule_text(import_schedule(text, format=format.value, epochs=epochs, role=role, where=str(file))), output)


def _best_schedule(path: Place) -> "Schedule":
    """Return a schedule file's schedule, or a run's best one so far."""
    from rolekd_ray.policy.schedule import load_schedule

    if path.is_file():
        return load_schedule(path)
    from rolekd_ray.search.pipeline import schedule_so_far
    from rolekd_ray.search.run_directory import open_run

    return schedule_so_far(open_run(path))


def _fill(path: Place) -> dict[str, list[int]]:
    """Return the colour that a run fills uncovered pixels with; nothing for a schedule file, which does not know it."""
    from rolekd_ray.errors import CheckpointError
    from rolekd_ray.training.checkpoint import read_description

    states = children(path / "states", "[0-9]*")
    for folder in (path / "best" / "student", path / "best" / "teacher", *states):
        try:
            return {"fill": [round(255 * mean) for mean in read_description(folder)["mean"]]}
        except CheckpointError:
            continue
    return {}
