"""Whose turn it is, the student's or the augmentor's: two thresholds on the student's loss."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from rolekd_ray.errors import ConfigError

Phase = Literal["student", "augmentor"]
LEAST_GAP = 0.2
"""Thresholds that are repaired lie at least so far apart, as a share of their middle."""


class Gate:
    """Alternates phases: the student learns until it errs little on the views, the augmentor until it errs much.

    Between the thresholds nothing flips (hysteresis). It begins with the student. A phase of the student lasts at least
    as long as the augmentor's before it did, so the augmentor is ahead by less than one phase and in the long run takes
    half of the steps at most, also where it cannot raise the student's loss.

    Args:
        lower: the student's phase ends with a loss below it; nats, at least 0.
        upper: the augmentor's phase ends with a loss above it; above `lower`.
        max_steps: and at the latest after so many steps of one phase of the augmentor.

    Raises:
        ConfigError: the thresholds are not in order, or `max_steps` is below 1.

    Source: a recollection (unverified, not the paper's) of how HARD alternates.
    """

    def __init__(self, lower: float, upper: float, max_steps: int):
        self.lower, self.upper = checked(lower, upper)
        if max_steps < 1:
            raise ConfigError(f"learned: max_steps: got {max_steps}; expected at least 1")
        self.max_steps = max_steps
        self.phase: Phase = "student"
        self.phase_steps = 0
        self.owed = 0
        """Steps of the augmentor's last phase."""
        self.phases = {"student": 1, "augmentor": 0}
        """Phases begun."""
        self.steps = {"student": 0, "augmentor": 0}
        """Steps in all phases."""

    def move(self, lower: float, upper: float) -> None:
        """Take other thresholds, of either order; see `ordered`. The phase goes on."""
        self.lower, self.upper = ordered(lower, upper)

    def tell(self, student_loss: float) -> None:
        """Count a step of the phase that it is, and flip if this loss on the views says so."""
        self.steps[self.phase] += 1
        self.phase_steps += 1
        if self.phase == "student":
            done = student_loss < self.lower and self.phase_steps >= self.owed
        else:
            done = student_loss > self.upper or self.phase_steps >= self.max_steps
        if done:
            self.owed = self.phase_steps if self.phase == "augmentor" else self.owed
            self.phase = "augmentor" if self.phase == "student" else "student"
            self.phase_steps = 0
            self.phases[self.phase] += 1

    def state(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Become what `state` returned."""
        assert state.keys() == vars(self).keys(), f"of another gate: {sorted(state)}"
        for name, value in state.items():
            setattr(self, name, dict(value) if isinstance(value, Mapping) else value)


def ordered(lower: float, upper: float) -> tuple[float, float]:
    """Return thresholds in order: a pair that mutations brought across each other is swapped and kept apart.

    A pair in order stays as it is. Any other keeps its middle; its half width is that of the pair, or a tenth of the
    middle if that is more. Mutated again and again a pair so never collapses.

    Raises:
        ConfigError: one is below 0 or not finite.
    """
    _check_range(lower, upper)
    if lower < upper:
        return lower, upper
    middle = (lower + upper) / 2
    half = max((lower - upper) / 2, LEAST_GAP / 2 * middle)
    return checked(middle - half, middle + half)


def checked(lower: float, upper: float) -> tuple[float, float]:
    """Return thresholds that are in order.

    Raises:
        ConfigError: they are not, or one is below 0 or not finite.
    """
    _check_range(lower, upper)
    if not lower < upper:
        raise ConfigError(f"learned: lower, upper: got {lower}, {upper}; expected lower below upper")
    return lower, upper


def _check_range(lower: float, upper: float) -> None:
    problems = [
        f"learned: {name}: got {value}; expected a number from 0 up"
        for name, value in (("lower", lower), ("upper", upper))
        if not (math.isfinite(value) and value >= 0)
    ]
    if problems:
        raise ConfigError(*problems)
