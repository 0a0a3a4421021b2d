"""Schedules in other people's formats: PBA's, the role-wise paper's, Ray's, and plain data."""

from typing import Any, Literal, get_args

from rolekd_ray.errors import ScheduleError, unknown_name
from rolekd_ray.policy.formats.pba import export_pba, read_vectors
from rolekd_ray.policy.formats.ray import export_ray, read_configs
from rolekd_ray.policy.formats.rows import Row, read_rows
from rolekd_ray.policy.formats.standalone import schedule_spec
from rolekd_ray.policy.schedule import FORMAT, Schedule
from rolekd_ray.roles import Role

__all__ = ["Format", "export_pba", "export_ray", "import_schedule", "schedule_spec"]

Format = Literal["pba", "rolekd", "ray"]

_LOOKS = {
    "pba": "policies are bare lists",
    "rolekd": "policies are configs with `hp_policy`",
    "ray": "configs hold `roles`",
}


def import_schedule(
    text: str, *, format: Format, epochs: int, role: Role = Role.STUDENT, where: str = "schedule"
) -> Schedule:
    """Read a published schedule: one exploit per line, the whole file one trial's ancestry.

    Formats: `pba`, Python literals with bare policy vectors (PBA's `schedules/`); `rolekd`, JSON with the vector in
    `hp_policy` of a config (the role-wise paper's `pbt_policy_*.txt`); `ray`, JSON whose configs are ours
    (`export_ray`) or hold an `hp_policy`. Vectors are read in the op order of `searchspaces/cifar10_pba.yaml`.

    Args:
        text: the file's content.
        format: see above; a file that looks like another one is refused.
        epochs: length of the schedule, at least the last row's `source_iter`; no format holds it.
        role: whose policies these are, where the file does not say; configs with `roles` name them.
        where: the file, for messages.

    Raises:
        ScheduleError: with every problem of the file, at most the first 20.
        SearchSpaceError: the space that a config names is unknown or wrong.
    """
    if format not in get_args(Format):
        raise ScheduleError(unknown_name(where, "format", format, get_args(Format)))
    problems: list[str] = []
    if text.lstrip().startswith(f"format: {FORMAT}"):
        raise ScheduleError(f"{where}: is a schedule file already; nothing is to be imported")
    rows = read_rows(text, python=format == "pba", where=where, problems=problems)
    _refuse_other_format(text, rows, format, where)
    if format == "ray" and rows and _looks_like(rows[0].before) == "ray":
        return read_configs(rows, epochs=epochs, where=where, problems=problems)
    return read_vectors(rows, epochs=epochs, role=role, where=where, problems=problems)


def _refuse_other_format(text: str, rows: list[Row[Any]], format: Format, where: str) -> None:
    fitting = (format,) if format != "ray" else ("ray", "rolekd")
    for row in rows or read_rows(text, python=True, where=where, problems=[]):
        for looks in (_looks_like(row.before), _looks_like(row.after)):
            if looks is not None and looks not in fitting:
                raise ScheduleError(
                    f"{where}: line {row.line}: {_LOOKS[looks]}; expected {format} rows, where {_LOOKS[format]}. "
                    f"Did you mean --format {looks}?"
                )


def _looks_like(config: object) -> Format | None:
    if isinstance(config, list | tuple):
        return "pba"
    if not isinstance(config, dict):
        return None
    return "ray" if "roles" in config else "rolekd" if "hp_policy" in config else None
