"""What verbs read before they begin."""

import json
from typing import TYPE_CHECKING

from rolekd_ray.cli.options import (
    Variant,
)

if TYPE_CHECKING:
    from rolekd_ray.config import Settings
    from rolekd_ray.policy.schedule import Schedule


def read_settings(config: str, overrides: list[str], seed: int | None) -> "Settings":
    """Return a configuration's settings under overrides; a seed that is given wins over theirs."""
    from rolekd_ray.config import load_settings

    return load_settings(config, [*overrides, *([f"seed={seed}"] if seed is not None else [])])


def beginning_with(path: str | None) -> list[str]:
    """Return the overrides by which a search begins with the policies of a run directory or a schedule file."""
    if path is None:
        return []
    from rolekd_ray.search.log import has_log
    from rolekd_ray.storage import place

    where = place(path)
    kind = "run" if has_log(where) or has_log(where / "teacher") or where.is_dir() else "schedule"
    return [f"search.initial_policies={kind}", f"search.initial_from={json.dumps(path)}"]


def varied(schedule: "Schedule", variant: Variant) -> "Schedule":
    """Return a schedule as it is replayed."""
    if variant == Variant.FLATTENED:
        return schedule.flatten()
    return schedule.last() if variant == Variant.LAST else schedule
