"""Reading settings, and wording what is wrong with them."""

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rolekd_ray.config.agents import evolvable_names
from rolekd_ray.config.base import Section
from rolekd_ray.config.data import KINDS
from rolekd_ray.config.settings import Settings
from rolekd_ray.errors import ConfigError, SearchSpaceError, suggest, unknown_name
from rolekd_ray.files import dump_yaml, parse_yaml, read_yaml
from rolekd_ray.policy.evolvable import CHOICE_KEYS, SCALAR_KEYS
from rolekd_ray.policy.space import find_searchspace, load_space, parse_space
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, place


def load_settings(path: Place | str | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read a configuration file, apply `key=value` overrides, check everything.

    Relative paths are those of the current folder; they come back absolute, so that a run can go on from any folder.

    Args:
        path: a YAML file, or the name of one in `searchspaces/`; None: `quickstart`.
        overrides: dotted keys with YAML values, e.g. `search.epochs=30`; the last one wins.

    Raises:
        ConfigError: with every problem found; unknown names come with the nearest known one.
    """
    path = "quickstart" if path is None else path
    try:
        file = place(path)
        file = file if file.suffix or file.is_file() else find_searchspace(str(path))
    except SearchSpaceError as error:
        raise ConfigError(str(error).replace("space: unknown search space", "configuration: unknown file")) from None
    data = read_yaml(file, ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a mapping of sections, got {data!r}")
    return _with_absolute_paths(parse_settings(data, overrides, where=file.name, name=file.stem))


def parse_settings(
    data: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str, name: str = "inline"
) -> Settings:
    """Check plain data under overrides as settings; see `load_settings`."""
    changed = deepcopy(dict(data))
    for override in overrides:
        _apply_override(changed, override)
    data = changed
    if isinstance(data.get("space"), dict):
        data = {**data, "space": {"name": name, **data["space"]}}
    problems: list[str] = []
    settings = None
    try:
        # Through JSON: pydantic's strict mode then takes lists and paths as a file writes them, and still no "1".
        settings = Settings.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems += dict.fromkeys(line for problem in error.errors() for line in _worded(problem, where))
    space_problems = _space_problems(data.get("space"), where)
    problems += space_problems
    if settings is not None and not space_problems:
        problems += _name_problems(settings, where)
    if problems or settings is None:
        raise ConfigError(*problems)
    return settings


def _with_absolute_paths(settings: Settings) -> Settings:
    data, teacher, search = settings.data, settings.teacher, settings.search
    checkpoint = _absolute(teacher.checkpoint) if teacher.checkpoint is not None else None
    return settings.model_copy(
        update={
            "data": data.model_copy(update={"path": data.path and data.path.expanduser().absolute()}),
            "teacher": teacher.model_copy(update={"checkpoint": checkpoint}),
            "search": search.model_copy(
                update={"initial_from": search.initial_from and search.initial_from.expanduser().absolute()}
            ),
        }
    )


def _absolute(checkpoint: Place | tuple[Place, ...]) -> Place | tuple[Place, ...]:
    if isinstance(checkpoint, tuple):
        return tuple(where.expanduser().absolute() for where in checkpoint)
    return checkpoint.expanduser().absolute()


def settings_text(settings: Settings) -> str:
    """Return every setting, defaults included, as YAML."""
    return dump_yaml(json.loads(settings.model_dump_json()))


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set: got {override!r}; expected key=value, as in search.epochs=30")
    parts = key.split(".")
    *parents, leaf = _with_name_in_one_part(parts, data)
    for parent in parents:
        if not isinstance(data.setdefault(parent, {}), dict):
            raise ConfigError(f"--set {key}: {parent!r} is not a section, got {data[parent]!r}")
        data = data[parent]
    data[leaf] = parse_yaml(text, where=f"--set {key}", error=ConfigError)


def _with_name_in_one_part(parts: list[str], data: Mapping[str, Any]) -> list[str]:
    """Join what names a scalar or choice, which alone may have dots: `space.scalars.cutmix.alpha.range`.

    The name ends where one that the data has ends, else before a key of a rule, else it is all the rest.
    """
    if parts[0] != "space" or parts[1:2] not in (["scalars"], ["choices"]):
        return parts
    rest = parts[2:]
    space = data.get("space")
    known = space.get(parts[1]) if isinstance(space, Mapping) else None
    ends = [n for n in range(1, len(rest)) if isinstance(known, Mapping) and ".".join(rest[:n]) in known]
    ends = ends or [n for n in range(1, len(rest)) if rest[n] in (*SCALAR_KEYS, *CHOICE_KEYS)]
    end = max(ends, default=len(rest))
    return [*parts[:2], *([".".join(rest[:end])] if rest else []), *rest[end:]]


def _space_problems(space: object, where: str) -> Sequence[str]:
    try:
        if isinstance(space, str):
            load_space(space)
        elif isinstance(space, dict):
            parse_space(space, where="space")
    except SearchSpaceError as error:
        return [f"{where}: {problem}" for problem in error.problems]
    return ()


def _name_problems(settings: Settings, where: str) -> list[str]:
    """Check names that other rooms own the list of, where that needs no torch."""
    of_training = ["learning_rate", "weight_decay"]
    of_distillation = ["temperature", *(f"losses.{name}" for name in settings.distill.losses)]
    allowed = {Role.TEACHER: of_training, Role.STUDENT: of_training + of_distillation}
    of_agents = [name for name, number in evolvable_names().items() if number]
    problems = []
    for scalar in settings.search_space(where).scalars:
        agent, dot, _ = scalar.name.partition(".")
        own = [name for name in of_agents if name.partition(".")[0] == agent]
        others = of_agents if dot and agent != "losses" else []
        if scalar.name not in (names := own or allowed[scalar.role] + others):
            kind = f"scalar of the {scalar.role}"
            problems.append(unknown_name(f"{where}: space.scalars", kind, scalar.name, names))
    return problems


RULES = {
    "missing": "expected this key, too",
    "too_short": "expected at least one entry",
    "tuple_type": "expected a list, as [one, two]",
    "dict_type": "expected a section, as {key: value}",
    "model_type": "expected a section, as {key: value}",
    "bool_type": "expected true or false",
}
"""What pydantic words in the words of JSON or Python, by its names of problems; every shortest length is 1."""


def _worded(problem: Any, where: str) -> list[str]:
    """Turn one pydantic error into lines of the project's form."""
    if problem["type"] == "extra_forbidden":
        *parents, unknown = map(str, problem["loc"])
        section: type[BaseModel] = Settings
        for part in parents:
            section = KINDS.get(part) or _section_in(section.model_fields[part].annotation)
        path = ".".join(part for part in parents if part not in KINDS)
        return [unknown_name(f"{where}: {path}".rstrip(": "), "key", unknown, section.model_fields)]
    # pydantic names the tried alternatives of a union in the location: `slots.count.literal['auto']`
    alternative = re.compile(rf"literal\[.*\]|constrained-\w+|dict\[.*\]|str|int|{'|'.join(KINDS)}")
    key = ".".join(part for part in map(str, problem["loc"]) if not alternative.fullmatch(part))
    rule = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if not key:
        return [f"{where}: {rule}"]
    if problem["type"] == "too_short" and problem["input"]:
        return []  # its entries are what is wrong, and pydantic counts those that are right
    if problem["type"] == "value_error" and (own := _of_own_check(rule, f"{where}: {key}")):
        return own
    hint, rule = "", RULES.get(problem["type"], rule)
    if problem["type"].startswith("union_tag"):
        return [unknown_name(f"{where}: {key}", "kind", problem["ctx"].get("tag"), KINDS)]
    if problem["type"] == "literal_error":
        names = str(problem["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        hint = suggest(problem["input"], names)
    return [f"{where}: {key}: got {problem['input']!r}; {rule[0].lower()}{rule[1:]}.{hint}"]


def _of_own_check(rule: str, where: str) -> list[str]:
    """Return the lines of a check of ours that says itself what it got, maybe of a key below; none: it does not."""
    lines = rule.splitlines()
    if all(re.match(r"got .*;|unknown ", line) for line in lines):
        return [f"{where}: {line}" for line in lines]
    return [f"{where}.{line}" for line in lines] if all(re.match(r"[a-z_.]+: got ", line) for line in lines) else []


def _section_in(annotation: Any) -> Any:
    """Return the section of `Section | None`, or what was given."""
    sections = (part for part in get_args(annotation) if isinstance(part, type) and issubclass(part, Section))
    return next(sections, annotation)
