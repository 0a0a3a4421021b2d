"""Unnamed policy vectors: PBA's schedules and the role-wise paper's logs.

A vector holds two integers, probability bin and magnitude bin, per slot of `searchspaces/cifar10_pba.yaml`: all ops
in that order, then all again (copy 2). The order is the one PBA fixed after its release; the role-wise paper's logs
were written by a Python 2 dict that happens to have it too. Nothing in the files says so.
"""

from collections.abc import Callable
from typing import Any

from rolekd_ray.errors import ScheduleError
from rolekd_ray.policy.evolvable import CHAIN
from rolekd_ray.policy.formats.chains import chain_problems
from rolekd_ray.policy.formats.rows import Row, chain_rows, lineage, raise_first, shortened
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.policy.space import SearchSpace, load_space
from rolekd_ray.roles import Role

SPACE = "cifar10_pba"


def read_vectors(rows: list[Row[Any]], *, epochs: int, role: Role, where: str, problems: list[str]) -> Schedule:
    """Return the schedule of a log whose policies are vectors (`[…60]`) or configs with one (`{"hp_policy": […60]}`).

    Settings with probability 0 keep their magnitude: a mutation may wake them.

    Raises:
        ScheduleError: with every problem of the file, `problems` included.
    """
    space = load_space(SPACE)

    def decoder(line: int) -> Callable[[Any, str], Policy]:
        return lambda config, place: _policy(config, space, f"{where}: line {line}: {place}", problems)

    decoded = [row.decoded(decoder(row.line)) for row in rows]
    raise_first(problems, where)
    return Schedule(space, {role: tuple(Segment(*segment) for segment in lineage(decoded, epochs, where))})


def _policy(config: Any, space: SearchSpace, where: str, problems: list[str]) -> Policy:
    vector = config.get("hp_policy") if isinstance(config, dict) else config
    slots = space.slots()
    if not isinstance(vector, list | tuple) or len(vector) != 2 * len(slots):
        got = f"{len(vector)} numbers" if isinstance(vector, list | tuple) else shortened(config)
        problems.append(
            f"{where}: got {got}; expected {2 * len(slots)} whole numbers: "
            f"{space.copies} copies x {len(space.ops)} ops x (probability, magnitude)"
        )
        return Policy()
    for i, value in enumerate(vector):
        kind, bins = ("magnitude", space.magnitude_bins) if i % 2 else ("probability", space.probability_bins)
        if type(value) is not int or not 0 <= value < bins:
            copy = i // (2 * len(space.ops)) + 1
            problems.append(
                f"{where}[{i}] ({kind} bin of {slots[i // 2]}, copy {copy}): got {shortened(value)}; "
                f"expected a whole number in 0..{bins - 1}"
            )
    return Policy(tuple(OpSetting(op, vector[2 * k], vector[2 * k + 1]) for k, op in enumerate(slots)))


def export_pba(schedule: Schedule, role: Role) -> str:
    """Return one role's schedule as PBA's code reads it: a Python list per line, policies as bare vectors.

    `import_schedule(…, format="pba")` with the same epochs gives back the same segments; a policy that lacks slots of
    the space comes back with them at bins 0, 0, and the chain `policy` as none told.

    Raises:
        ScheduleError: the role is absent, or the vectors cannot say what the schedule says: other ops, strengths,
            bins, copies or counts than PBA's, evolved scalars, a chain other than `policy` or other choices, a
            flattened schedule.
    """
    problems = _misfits(schedule, role)
    if problems:
        raise ScheduleError(*problems)
    pba = load_space(SPACE)
    segments = [(segment.epochs, _vector(segment.policy.completed(pba))) for segment in schedule.roles[role]]
    return "".join(f"{row!r}\n" for row in chain_rows(segments))


def _vector(policy: Policy) -> list[int]:
    return [number for s in policy.settings for number in (s.probability_bin, s.magnitude_bin)]


def _misfits(schedule: Schedule, role: Role) -> list[str]:
    space, pba, where = schedule.space, load_space(SPACE), "export to pba"
    problems = []
    if role not in schedule.roles:
        problems.append(f"{where}: role: got {str(role)!r}; expected one of {', '.join(schedule.roles)}")
    if [op.name for op in space.ops] != [op.name for op in pba.ops]:
        got, expected = (", ".join(op.name for op in s.ops) for s in (space, pba))
        problems.append(f"{where}: ops: got {got}; expected {expected}, in this order")
    elif differing := [f"{a.name} {a.magnitudes}" for a, b in zip(space.ops, pba.ops) if a != b]:
        problems.append(f"{where}: strengths: got {'; '.join(differing)}; expected those of {SPACE}")
    for name in ("probability_bins", "magnitude_bins", "counts"):
        if (got := getattr(space, name)) != (expected := getattr(pba, name)):
            problems.append(f"{where}: {name}: got {got}; expected {expected}")
    if space.copies > pba.copies:
        problems.append(f"{where}: copies: got {space.copies}; expected at most {pba.copies}")
    if scalars := sorted({name for s in schedule.roles.get(role, ()) for name in s.policy.scalars}):
        problems.append(f"{where}: scalars: got {', '.join(scalars)}; expected none, the vectors hold ops only")
    problems += chain_problems(schedule, role, where)
    if others := sorted({name for s in schedule.roles.get(role, ()) for name in s.policy.choices} - {CHAIN}):
        problems.append(f"{where}: choices: got {', '.join(others)}; expected none, the vectors hold ops only")
    if schedule.flattened:
        problems.append(f"{where}: flattened: got True; expected False, the format has an order (PBA flattens by flag)")
    return problems
