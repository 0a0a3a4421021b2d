"""What evolves beside the ops: numbers from a range, and choices from a list."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rolekd_ray.errors import suggest, unknown_name
from rolekd_ray.policy.agents import chain_text, parse_chain
from rolekd_ray.roles import Role

CHAIN = "agents"
"""The choice that is a role's whole chain of agents; a schedule file calls it `chain`."""

SEGMENT_KEYS = ("epochs", "policy", CHAIN)  # scalars stand beside these in a schedule file
TAKEN_BY_FILES = ("epochs", "policy", "chain")  # so no choice can be called that

SCALAR_KEYS = ("role", "initial", "range", "log", "factors", "resample_probability")
CHOICE_KEYS = ("role", "initial", "values", "resample_probability")


@dataclass(frozen=True, slots=True)
class ScalarSpec:
    """One evolvable number beside the ops, such as the distillation temperature.

    A mutation multiplies by one of `factors`, or redraws from [`low`, `high`] (log-uniform if `log`) with chance
    `resample_probability`; the result is always clipped to the range.
    """

    name: str
    role: Role
    initial: float
    low: float
    high: float
    log: bool = False
    factors: tuple[float, ...] = (0.8, 1.2)
    resample_probability: float = 0.25

    def to_dict(self) -> dict[str, Any]:
        """Return the YAML form, without the name."""
        return {
            "role": str(self.role),
            "initial": self.initial,
            "range": [self.low, self.high],
            "log": self.log,
            "factors": list(self.factors),
            "resample_probability": self.resample_probability,
        }


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """One evolvable choice, such as a role's chain of agents: one of `values`, which have no order.

    A mutation redraws it uniformly from `values` with chance `resample_probability`, else leaves it: categories have
    no neighbours to step to. The redrawn value may be the old one.
    """

    name: str
    role: Role
    initial: str
    values: tuple[str, ...]
    resample_probability: float = 0.25

    def to_dict(self) -> dict[str, Any]:
        """Return the YAML form, without the name."""
        return {
            "role": str(self.role),
            "initial": self.initial,
            "values": list(self.values),
            "resample_probability": self.resample_probability,
        }


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def parse_scalars(data: object, where: str, problems: list[str]) -> tuple[ScalarSpec, ...]:
    """Read `{name: {initial, range, …}}`; adds to `problems` what is wrong and leaves it out."""
    if not isinstance(data, Mapping):
        problems.append(f"{where}: got {data!r}; expected a mapping of names to rules")
        return ()
    return tuple(
        scalar for name, row in data.items() for scalar in _parse_scalar(str(name), row, f"{where}.{name}", problems)
    )


def parse_choices(data: object, where: str, problems: list[str]) -> tuple[ChoiceSpec, ...]:
    """Read `{name: {initial, values, …}}`; adds to `problems` what is wrong and leaves it out.

    Values are text, or lists of text, which become text with + between. Those of the choice `agents` are chains
    (`agents.parse_chain`).
    """
    if not isinstance(data, Mapping):
        problems.append(f"{where}: got {data!r}; expected a mapping of names to rules")
        return ()
    return tuple(
        choice for name, row in data.items() for choice in _parse_choice(str(name), row, f"{where}.{name}", problems)
    )


def rows_of(specs: Iterable[ScalarSpec | ChoiceSpec]) -> dict[str, Any]:
    """Return the YAML form of all scalars or all choices; what evolves alike for both roles is one row."""
    rows: dict[str, Any] = {}
    for spec in specs:
        row = spec.to_dict()
        if spec.name in rows:
            assert {**rows[spec.name], "role": row["role"]} == row, f"{spec.name}: roles differ in more than the role"
            row["role"] = [rows[spec.name]["role"], row["role"]]
        rows[spec.name] = row
    return rows


def parse_choice_value(name: str, value: object, where: str, problems: list[str]) -> str | None:
    """Return a value of a choice as its text; None if it is none, with the problem told."""
    found = len(problems)
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        problems.append(f"{where}: got {value!r}; expected text or a list of texts (quote numbers, true and false)")
    elif name == CHAIN:
        parts = parse_chain(parts if len(parts) != 1 else parts[0], where, problems)
    elif not all(part.strip() for part in parts) or not parts:
        problems.append(f"{where}: got {value!r}; expected text that is not empty")
    return None if len(problems) > found else chain_text(parts)  # type: ignore[arg-type]


def _parse_scalar(name: str, row: object, where: str, problems: list[str]) -> list[ScalarSpec]:
    if not isinstance(row, Mapping):
        problems.append(f"{where}: got {row!r}; expected a mapping such as {{initial: 4.0, range: [1, 10]}}")
        return []
    found = len(problems)
    if name in SEGMENT_KEYS:
        problems.append(
            f"{where}: got a key of the schedule file; expected a name other than {', '.join(SEGMENT_KEYS)}"
        )
    problems += [unknown_name(where, "key", key, SCALAR_KEYS) for key in row if key not in SCALAR_KEYS]
    log = row.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"{where}.log: got {log!r}; expected true or false")
    bounds, initial = row.get("range"), row.get("initial")
    if bounds is None:
        problems.append(f"{where}.range: got none, and an evolvable number needs its range; expected [low, high]")
    elif not isinstance(bounds, list | tuple) or len(bounds) != 2 or not all(map(is_number, bounds)):
        problems.append(f"{where}.range: got {bounds!r}; expected [low, high]")
    elif not bounds[0] < bounds[1] or (log is True and bounds[0] <= 0):
        problems.append(f"{where}.range: got {bounds!r}; expected low < high{', both above 0' if log else ''}")
    elif not is_number(initial) or not bounds[0] <= initial <= bounds[1]:
        problems.append(f"{where}.initial: got {initial!r}; expected a number in {list(bounds)}")
    factors = row.get("factors", (0.8, 1.2))
    if not isinstance(factors, list | tuple) or not factors or not all(is_number(f) and f > 0 for f in factors):
        problems.append(f"{where}.factors: got {factors!r}; expected positive numbers such as [0.8, 1.2]")
    roles, resample = _roles_and_resampling(row, where, problems)
    if len(problems) > found:
        return []
    assert bounds is not None and initial is not None, "checked above"
    low, high = map(float, bounds)
    rule = (float(initial), low, high, log, tuple(map(float, factors)), float(resample))
    return [ScalarSpec(name, role, *rule) for role in roles]


def _parse_choice(name: str, row: object, where: str, problems: list[str]) -> list[ChoiceSpec]:
    if not isinstance(row, Mapping):
        problems.append(f"{where}: got {row!r}; expected a mapping such as {{initial: one, values: [one, other]}}")
        return []
    found = len(problems)
    if name in TAKEN_BY_FILES:
        problems.append(
            f"{where}: got a key of the schedule file; expected a name other than {', '.join(TAKEN_BY_FILES)}"
        )
    problems += [unknown_name(where, "key", key, CHOICE_KEYS) for key in row if key not in CHOICE_KEYS]
    values = _parse_values(name, row.get("values"), f"{where}.values", problems)
    initial = row.get("initial")
    if initial is None:
        problems.append(f"{where}.initial: got none; expected one of the values")
    elif len(values) >= 2:  # else the values are the problem
        text = parse_choice_value(name, initial, f"{where}.initial", problems)
        if text is not None and text not in values:
            problems.append(
                f"{where}.initial: got {text!r}; expected one of {', '.join(values)}.{suggest(text, values)}"
            )
        initial = text
    roles, resample = _roles_and_resampling(row, where, problems)
    if len(problems) > found:
        return []
    return [ChoiceSpec(name, role, str(initial), values, float(resample)) for role in roles]


def _parse_values(name: str, given: object, where: str, problems: list[str]) -> tuple[str, ...]:
    if given is None:
        problems.append(f"{where}: got none, and an evolvable choice needs them; expected a list of at least 2 values")
        return ()
    if not isinstance(given, list | tuple) or len(given) < 2:
        problems.append(f"{where}: got {given!r}; expected a list of at least 2 values")
        return ()
    texts = [parse_choice_value(name, value, f"{where}[{i}]", problems) for i, value in enumerate(given)]
    values = [text for text in texts if text is not None]
    problems += [
        f"{where}: got {value!r} {values.count(value)} times; expected each value once"
        for value in dict.fromkeys(values)
        if values.count(value) > 1
    ]
    return tuple(values) if len(values) == len(given) else ()


def _roles_and_resampling(row: Mapping[str, Any], where: str, problems: list[str]) -> tuple[list[Role], Any]:
    given, resample = row.get("role", "student"), row.get("resample_probability", 0.25)
    roles = given if isinstance(given, list | tuple) else [given]
    for role in roles:
        if role not in list(Role):
            problems.append(
                f"{where}.role: got {role!r}; expected teacher, student or [teacher, student].{suggest(role, Role)}"
            )
    if not roles or any(roles.count(role) > 1 for role in roles):
        problems.append(f"{where}.role: got {given!r}; expected teacher, student or both, each once")
    if not is_number(resample) or not 0 <= resample <= 1:
        problems.append(f"{where}.resample_probability: got {resample!r}; expected a number in [0, 1]")
    return [Role(role) for role in roles if role in list(Role)], resample
