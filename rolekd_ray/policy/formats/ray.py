"""Ray Tune's own policy logs (`pbt_policy_*.txt`), as `PopulationBasedTrainingReplay` reads them.

A config of ours is `{"space": …, "roles": {"student": {"policy": [settings in file form], <scalars>, "agents": {…}}}}`,
with `"flattened": true` where it holds: keys and values as in a schedule file.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from rolekd_ray.errors import unknown_name
from rolekd_ray.policy.formats.rows import Row, chain_rows, lineage, raise_first, shortened
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment, merged, schedule_to_dict, segment_from_dict
from rolekd_ray.policy.space import SearchSpace, load_space, parse_space
from rolekd_ray.roles import Role


def export_ray(schedule: Schedule) -> str:
    """Return a schedule as a policy log for `PopulationBasedTrainingReplay`: JSON rows, all roles in one config.

    One training iteration is one epoch. Settings that cannot fire are left out, so
    `import_schedule(…, format="ray")` with the same epochs gives back `schedule.firing()`.
    """
    data = schedule_to_dict(schedule)
    shared = {key: data[key] for key in ("space", "flattened") if key in data}
    per_role = {role: _expanded(row["segments"]) for role, row in data["roles"].items()}
    starts = sorted({start for configs in per_role.values() for start in configs})
    segments = []
    held: dict[str, Any] = {}
    for start, end in zip(starts, [*starts[1:], schedule.epochs]):
        held = held | {role: configs[start] for role, configs in per_role.items() if start in configs}
        segments.append((end - start, shared | {"roles": held}))
    return "".join(json.dumps(row) + "\n" for row in chain_rows(segments))


def _expanded(segments: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the settings of each segment by its first epoch."""
    starts = [sum(segment["epochs"] for segment in segments[:i]) for i in range(len(segments))]
    return {start: {k: v for k, v in s.items() if k != "epochs"} for start, s in zip(starts, segments)}


def read_configs(rows: list[Row[Any]], *, epochs: int, where: str, problems: list[str]) -> Schedule:
    """Return the schedule of a log whose configs hold `roles`; every config names the same space and roles.

    Raises:
        ScheduleError: with every problem of the file, `problems` included.
        SearchSpaceError: the space is unknown or wrong.
    """
    first = rows[0].before
    given, flattened = first.get("space"), first.get("flattened", False)
    place = f"{where}: line {rows[0].line}: space"
    space = load_space(given) if isinstance(given, str) else parse_space(given, where=place)
    if not isinstance(flattened, bool):
        problems.append(f"{where}: flattened: got {flattened!r}; expected true or false")

    def decoder(line: int) -> Callable[[Any, str], dict[Role, Policy]]:
        return lambda config, name: _policies(config, first, space, f"{where}: line {line}: {name}", problems)

    decoded = [row.decoded(decoder(row.line)) for row in rows]
    raise_first(problems, where)
    segments = lineage(decoded, epochs, where)
    roles = {role: merged(Segment(n, policies[role]) for n, policies in segments) for role in decoded[0].before}
    return Schedule(space, roles, flattened)


def _policies(config: Any, first: Any, space: SearchSpace, where: str, problems: list[str]) -> dict[Role, Policy]:
    roles = config.get("roles") if isinstance(config, Mapping) else None
    if not isinstance(roles, Mapping) or not roles:
        problems.append(f"{where}: got {shortened(config)}; expected {{space, roles: {{student: {{policy}}}}}}")
        return {}
    allowed = ("space", "flattened", "roles")
    problems += [unknown_name(where, "key", key, allowed) for key in config if key not in allowed]
    problems += [unknown_name(f"{where}: roles", "role", name, Role) for name in roles if name not in list(Role)]
    for key, got, expected in [
        *((key, config.get(key), first.get(key)) for key in ("space", "flattened")),
        ("roles", sorted(roles), sorted(first.get("roles") or ())),
    ]:
        if got != expected:
            problems.append(
                f"{where}: {key}: got {shortened(got)}; expected {shortened(expected)}, as in the first row"
            )
    return {
        Role(name): _policy(row, space, Role(name), f"{where}: roles.{name}", problems)
        for name, row in roles.items()
        if name in list(Role)
    }


def _policy(row: Any, space: SearchSpace, role: Role, where: str, problems: list[str]) -> Policy:
    if not isinstance(row, Mapping) or "epochs" in row:
        problems.append(f"{where}: got {shortened(row)}; expected {{policy}}, the space's scalars and agents")
        return Policy()
    return segment_from_dict({"epochs": 1, **row}, space, role, where, problems).policy
