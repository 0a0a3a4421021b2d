"""A policy's scalars and choices in file form.

Scalars stand beside the policy, settings of agents and choices below `agents`, where the chain is called `chain`:
`{temperature: 3.2, agents: {chain: policy+cutmix, cutmix.alpha: 0.7, pick.criterion: student_entropy}}`.
"""

from collections.abc import Mapping
from typing import Any

from rolekd_ray.errors import suggest, unknown_name
from rolekd_ray.policy.agents import is_agent_setting
from rolekd_ray.policy.evolvable import CHAIN, ChoiceSpec, ScalarSpec, is_number, parse_choice_value
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role

Spec = ScalarSpec | ChoiceSpec


def evolved_to_dict(policy: Policy) -> dict[str, Any]:
    """Return scalars and choices in file form; no `agents` where there is nothing to stand in it."""
    beside = {name: value for name, value in policy.scalars.items() if not is_agent_setting(name)}
    below: dict[str, Any] = {_key(name): policy.choices[name] for name in sorted(policy.choices, key=_chain_first)}
    below |= {name: value for name, value in policy.scalars.items() if is_agent_setting(name)}
    return beside | ({"agents": below} if below else {})


def evolved_from_dict(
    row: Mapping[str, Any], space: SearchSpace, role: Role, others: tuple[str, ...], where: str, problems: list[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Read scalars and choices from file form; adds to `problems` what does not fit the space.

    Args:
        row: a segment, or a role's entry of a job.
        space: whose scalars and choices may stand there, and in which range or list.
        role: whose they are.
        others: keys of the row that are read elsewhere.
        where: the row, for messages.
        problems: grows by one line per problem.
    """
    beside, below = dict[str, Spec](), dict[str, Spec]()
    below |= {_key(choice.name): choice for choice in space.choices_of(role)}
    for scalar in space.scalars_of(role):
        (below if is_agent_setting(scalar.name) else beside)[scalar.name] = scalar
    allowed = (*others, *beside, *(["agents"] if below else []))
    problems += [
        unknown_name(where, "key", key, allowed, meant="agents" if key in below else None)
        for key in row
        if key not in allowed
    ]
    section = row.get("agents", {}) if below else {}
    if not isinstance(section, Mapping):
        problems.append(f"{where}.agents: got {section!r}; expected a mapping with some of {', '.join(below)}")
        section = {}
    problems += [unknown_name(f"{where}.agents", "key", key, below) for key in section if key not in below]
    read_scalars, read_choices = dict[str, float](), dict[str, str]()
    for values, specs, place in ((row, beside, where), (section, below, f"{where}.agents")):
        for key, spec in specs.items():
            if key not in values:
                continue
            if isinstance(spec, ScalarSpec):
                read_scalars[spec.name] = _number(values[key], spec, f"{place}.{key}", problems)
            else:
                read_choices[spec.name] = _choice(values[key], spec, f"{place}.{key}", problems)
    return read_scalars, read_choices


def _key(choice: str) -> str:
    """Return a choice's key below `agents`."""
    return "chain" if choice == CHAIN else choice


def _chain_first(name: str) -> bool:
    return name != CHAIN


def _number(value: Any, spec: ScalarSpec, where: str, problems: list[str]) -> float:
    if not is_number(value) or not spec.low <= value <= spec.high:
        problems.append(f"{where}: got {value!r}; expected a number in [{spec.low:g}, {spec.high:g}]")
    return value


def _choice(value: object, spec: ChoiceSpec, where: str, problems: list[str]) -> str:
    text = parse_choice_value(spec.name, value, where, problems)
    if text is not None and text not in spec.values:
        problems.append(f"{where}: got {text!r}; expected one of {', '.join(spec.values)}.{suggest(text, spec.values)}")
    return text or spec.initial
