"""What verbs read before they begin."""

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


def varied(schedule: "Schedule", variant: Variant) -> "Schedule":
    """Return a schedule as it is replayed."""
    if variant == Variant.FLATTENED:
        return schedule.flatten()
    return schedule.last() if variant == Variant.LAST else schedule
