"""A schedule as plain data, for code that knows nothing of this package."""

from typing import Any

from rolekd_ray.errors import ScheduleError
from rolekd_ray.policy.formats.chains import chain_problems
from rolekd_ray.policy.schedule import Schedule
from rolekd_ray.roles import Role


def schedule_spec(schedule: Schedule, role: Role) -> dict[str, Any]:
    """Return one role's schedule as plain data, JSON-safe and without bins or search space.

    Keys: `epochs`; `counts`, where `counts[k]` is the chance that k ops fire on an image; `segments`, in order, each
    `{"epochs": n, "settings": [[op, probability, magnitude, signed], …]}`; `flattened`. Probabilities are in [0, 1],
    magnitudes in the op's unit (`space.OP_UNITS`), None for an op without strength. Settings that cannot fire are
    left out, and so are scalars and choices: they steer the training, or agents that are not in force.

    Raises:
        ScheduleError: the role is absent, or its chain is another than `policy`: the data holds ops only.
    """
    if role not in schedule.roles:
        raise ScheduleError(f"schedule: role: got {str(role)!r}; expected one of {', '.join(schedule.roles)}")
    if problems := chain_problems(schedule, role, "schedule"):
        raise ScheduleError(*problems)
    space = schedule.space
    return {
        "epochs": schedule.epochs,
        "counts": list(space.counts),
        "segments": [
            {
                "epochs": segment.epochs,
                "settings": [
                    [
                        setting.op,
                        round(space.probability(setting.probability_bin), 10),
                        space.magnitude(setting.op, setting.magnitude_bin),
                        space.op(setting.op).signed,
                    ]
                    for setting in segment.policy.settings
                ],
            }
            for segment in schedule.firing().roles[role]
        ],
        "flattened": schedule.flattened,
    }
