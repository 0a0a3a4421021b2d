"""What a search hands to a slot, and what it expects of the worker inside. Imports no torch."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from rolekd_ray.config import Settings
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place


class Worker(Protocol):
    """Trains intervals; Ray's slots and the one-process runner drive any of them."""

    def train(self, job: Job) -> dict[str, Any]:
        """Train an interval, leave its state on disk, return its metrics, `score` among them.

        Doing a job again returns the same score: at once if its state lies there.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What a search trains.

    `roles` are trained and evolve; the last of them is the fitness (the student, where both are trained). `teacher` is
    the frozen teacher's checkpoint, or those of an ensemble; `fixed` holds the policies of roles that do not evolve.
    """

    settings: Settings
    states: Place
    roles: tuple[Role, ...]
    teacher: Place | tuple[Place, ...] | None = None
    fixed: Schedule | None = None

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.settings.search_space()
