"""Agents that nothing evolves or learns: known augmentations by name, batched on this package's ops."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from rolekd_ray.augment.agents import Agent
from rolekd_ray.augment.static.augmix import AugMix
from rolekd_ray.augment.static.autoaugment import AutoAugment
from rolekd_ray.augment.static.autoaugment_policies import POLICIES
from rolekd_ray.augment.static.cutout import Cutout
from rolekd_ray.augment.static.none import NoAugmentation
from rolekd_ray.augment.static.randaugment import RandAugment
from rolekd_ray.augment.static.tables import table_bins
from rolekd_ray.augment.static.trivial import TrivialAugmentWide
from rolekd_ray.errors import InputError, suggest, unknown_name


class _Rule(NamedTuple):
    """What a setting may be, in words and as a check."""

    expected: str
    holds: Callable[[object], bool]
    names: tuple[str, ...] = ()


def _whole(low: int, high: int) -> _Rule:
    return _Rule(
        f"a whole number from {low} to {high}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
    )


def _number(low: float, high: float) -> _Rule:
    return _Rule(
        f"a number from {low} to {high}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high,
    )


def _one_of(names: tuple[str, ...]) -> _Rule:
    return _Rule(f"one of {', '.join(names)}", names.__contains__, names)


_AGENTS: dict[str, tuple[Callable[..., Agent], dict[str, _Rule]]] = {
    "none": (NoAugmentation, {}),
    "randaugment": (
        RandAugment,
        {"ops": _whole(0, 100), "magnitude": _whole(0, table_bins("randaugment") - 1)},
    ),
    "trivial_augment_wide": (TrivialAugmentWide, {}),
    "autoaugment": (AutoAugment, {"dataset": _one_of(tuple(POLICIES))}),
    "augmix": (
        AugMix,
        {
            "severity": _whole(1, table_bins("augmix")),
            "width": _whole(1, 100),
            "depth": _whole(-1, 100),
            "alpha": _number(0.01, 100.0),
        },
    ),
    "cutout": (Cutout, {"pixels": _whole(0, 1 << 15)}),
}

STATIC_AGENTS: tuple[str, ...] = tuple(_AGENTS)
"""Names that `static_agent` knows."""


def static_agent(name: str, settings: Mapping[str, object], fill: Tensor) -> Agent:
    """Return a static agent.

    Args:
        name: one of `STATIC_AGENTS`.
        settings: of that agent, by name; those left out have the agent's defaults.
        fill: colour of uncovered pixels, (C,) uint8, on the device of the images to come.

    Returns:
        An agent whose views are uint8, as `Agent` describes.

    Raises:
        InputError: no agent has this name, or settings it does not have or that are out of range; all of them at once.
    """
    if name not in _AGENTS:
        raise InputError(unknown_name("agents", "static agent", name, STATIC_AGENTS))
    build, rules = _AGENTS[name]
    problems = []
    for setting, value in settings.items():
        if not rules:
            problems.append(f"agents.{name}: unknown setting {setting!r}; expected none.")
        elif setting not in rules:
            problems.append(unknown_name(f"agents.{name}", "setting", setting, rules))
        elif not rules[setting].holds(value):
            rule = rules[setting]
            hint = suggest(value, rule.names)
            problems.append(f"agents.{name}.{setting}: out of range, got {value!r}; expected {rule.expected}.{hint}")
    if problems:
        raise InputError(*problems)
    return build(fill, **settings)
