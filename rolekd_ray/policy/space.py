"""The search space: which ops, strengths, scalars and choices a policy may use.

Data, not code: a space is the `space:` section of a file in `searchspaces/`. It knows nothing of images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rolekd_ray.errors import SearchSpaceError, unknown_name
from rolekd_ray.policy.evolvable import ChoiceSpec, ScalarSpec, is_number, parse_choices, parse_scalars, rows_of
from rolekd_ray.roles import Role

if TYPE_CHECKING:  # 5 ms of an import that should take milliseconds
    from pathlib import Path

# op -> unit of its magnitude; None: the op has no strength. `augment.ops` implements exactly these.
OP_UNITS: dict[str, str | None] = {
    "rotate": "degrees",
    "translate_x": "pixels",
    "translate_y": "pixels",
    "brightness": "factor",  # 1 leaves the image as it is, as for color, sharpness and contrast
    "color": "factor",
    "invert": None,
    "sharpness": "factor",
    "posterize": "bits kept",
    "shear_x": "slope",
    "solarize": "threshold",
    "shear_y": "slope",
    "equalize": None,
    "auto_contrast": None,
    "cutout": "pixels",
    "contrast": "factor",
}


@dataclass(frozen=True, slots=True)
class OpSpec:
    """One op of a space.

    `magnitudes` holds the strength at each bin in the op's unit (`OP_UNITS`), or None for an op without strength.
    `signed` draws a direction per image.
    """

    name: str
    magnitudes: tuple[float, ...] | None = None
    signed: bool = False


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Everything a policy may hold.

    `counts[k]` is the chance that k ops fire on an image. Probabilities lie on a grid of `probability_bins` values
    from 0 to 1, strengths on one of `magnitude_bins`. Each op stands `copies` times in a policy.
    """

    name: str
    ops: tuple[OpSpec, ...]
    probability_bins: int = 11
    magnitude_bins: int = 10
    copies: int = 2
    counts: tuple[float, ...] = (0.2, 0.3, 0.5)
    scalars: tuple[ScalarSpec, ...] = ()
    choices: tuple[ChoiceSpec, ...] = ()
    _ops_by_name: dict[str, OpSpec] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_ops_by_name", {op.name: op for op in self.ops})

    def op(self, name: str) -> OpSpec:
        """Return an op's row; KeyError if the space does not list it."""
        return self._ops_by_name[name]

    def __contains__(self, op_name: object) -> bool:
        return isinstance(op_name, str) and op_name in self._ops_by_name

    def probability(self, probability_bin: int) -> float:
        """Return the chance, in [0, 1], that a bin stands for."""
        return probability_bin / (self.probability_bins - 1)

    def magnitude(self, op_name: str, magnitude_bin: int) -> float | None:
        """Return the strength in the op's unit; None for an op without strength."""
        magnitudes = self.op(op_name).magnitudes
        return None if magnitudes is None else magnitudes[magnitude_bin]

    def slots(self) -> list[str]:
        """Return the op of each place of a complete policy: all ops, once per copy."""
        return [op.name for _ in range(self.copies) for op in self.ops]

    def scalars_of(self, role: Role) -> tuple[ScalarSpec, ...]:
        """Return the scalars that evolve with one role's policy."""
        return tuple(scalar for scalar in self.scalars if scalar.role == role)

    def choices_of(self, role: Role) -> tuple[ChoiceSpec, ...]:
        """Return the choices that evolve with one role's policy."""
        return tuple(choice for choice in self.choices if choice.role == role)

    def to_dict(self) -> dict[str, Any]:
        """Return the YAML form; `parse_space` reads it back to an equal space."""
        data = {
            "name": self.name,
            "probability_bins": self.probability_bins,
            "magnitude_bins": self.magnitude_bins,
            "copies": self.copies,
            "counts": dict(enumerate(self.counts)),
            "ops": {
                op.name: ({"values": list(op.magnitudes)} if op.magnitudes is not None else {})
                | ({"signed": True} if op.signed else {})
                for op in self.ops
            },
            "scalars": rows_of(self.scalars),
        }
        # Left out where there are none: logs and checkpoints of runs before there were choices compare equal
        return data | ({"choices": rows_of(self.choices)} if self.choices else {})


def parse_space(data: object, *, where: str, name: str = "inline") -> SearchSpace:
    """Build a space from its YAML form.

    An op row is `{}` (no strength), `{range: [low, high]}` (bins spread evenly from low to high, both included) or
    `{values: [...]}` (one strength per bin), with `signed: true` if a direction is drawn.

    Args:
        data: the `space:` section.
        where: file and key, for messages.
        name: used where the section does not name itself.

    Raises:
        SearchSpaceError: with every problem of the section.
    """
    problems: list[str] = []
    if not isinstance(data, Mapping):
        raise SearchSpaceError(f"{where}: expected a mapping, got {data!r}")
    allowed = ("name", "probability_bins", "magnitude_bins", "copies", "counts", "ops", "scalars", "choices")
    problems += [unknown_name(where, "key", key, allowed) for key in data if key not in allowed]
    numbers = {"probability_bins": (11, 2), "magnitude_bins": (10, 1), "copies": (2, 1)}
    sizes = {}
    for key, (default, least) in numbers.items():
        sizes[key] = value = data.get(key, default)
        if type(value) is not int or value < least:
            problems.append(f"{where}.{key}: got {value!r}; expected a whole number of at least {least}")
            sizes[key] = default
    counts = _parse_counts(data.get("counts", {0: 0.2, 1: 0.3, 2: 0.5}), f"{where}.counts", problems)
    ops = _parse_ops(data.get("ops"), f"{where}.ops", sizes["magnitude_bins"], problems)
    scalars = parse_scalars(data.get("scalars") or {}, f"{where}.scalars", problems)
    choices = parse_choices(data.get("choices") or {}, f"{where}.choices", problems)
    evolving = {(scalar.role, scalar.name) for scalar in scalars}
    problems += [
        f"{where}.choices.{choice.name}: got the name of a scalar of the {choice.role} too; expected one of the two"
        for choice in choices
        if (choice.role, choice.name) in evolving
    ]
    if len(counts) - 1 > sizes["copies"] * max(len(ops), 1):
        problems.append(f"{where}.counts: {len(counts) - 1} ops cannot fire from {sizes['copies'] * len(ops)} slots")
    if problems:
        raise SearchSpaceError(*problems)
    return SearchSpace(str(data.get("name", name)), ops, counts=counts, scalars=scalars, choices=choices, **sizes)


def _parse_counts(data: object, where: str, problems: list[str]) -> tuple[float, ...]:
    try:
        counts = {int(str(key)): float(value) for key, value in dict(data).items()}  # type: ignore[call-overload]
    except (TypeError, ValueError):
        problems.append(f"{where}: got {data!r}; expected how many ops fire and how often, as {{0: 0.2, 1: 0.8}}")
        return (1.0,)
    if not counts or min(counts) < 0 or not all(0 <= chance <= 1 for chance in counts.values()):
        problems.append(f"{where}: got {data!r}; expected counts of at least 0 with chances in [0, 1]")
        return (1.0,)
    if abs(sum(counts.values()) - 1) > 1e-9:
        problems.append(f"{where}: chances add up to {sum(counts.values()):g}; expected 1")
    return tuple(counts.get(k, 0.0) for k in range(max(counts) + 1))


def _parse_ops(data: object, where: str, bins: int, problems: list[str]) -> tuple[OpSpec, ...]:
    if not isinstance(data, Mapping) or not data:
        problems.append(f"{where}: got {data!r}; expected at least one of {', '.join(OP_UNITS)}")
        return ()
    return tuple(_parse_op(str(name), row, f"{where}.{name}", bins, problems) for name, row in data.items())


def _parse_op(name: str, row: object, where: str, bins: int, problems: list[str]) -> OpSpec:
    row = {} if row is None else row
    if name not in OP_UNITS:
        problems.append(unknown_name(where, "op", name, OP_UNITS))
    if not isinstance(row, Mapping):
        problems.append(f"{where}: got {row!r}; expected a mapping such as {{range: [0, 9], signed: true}}")
        return OpSpec(name)
    allowed = ("range", "values", "signed")
    problems += [unknown_name(where, "key", key, allowed) for key in row if key not in allowed]
    signed = row.get("signed", False)
    if not isinstance(signed, bool):
        problems.append(f"{where}.signed: got {signed!r}; expected true or false")
    unit = OP_UNITS.get(name)
    given = [key for key in ("range", "values") if key in row]
    if name in OP_UNITS and len(given) != (unit is not None):
        rule = f"one of range, values (in {unit})" if unit else "neither range nor values: the op has no strength"
        problems.append(f"{where}: got {', '.join(given) or 'no strength'}; expected {rule}")
    magnitudes = None
    if given:
        magnitudes = _parse_magnitudes(row[given[0]], f"{where}.{given[0]}", bins, given[0] == "range", problems)
    return OpSpec(name, magnitudes, bool(signed))


def _parse_magnitudes(value: object, where: str, bins: int, is_range: bool, problems: list[str]):
    length = 2 if is_range else bins
    if not isinstance(value, list | tuple) or len(value) != length or not all(map(is_number, value)):
        problems.append(f"{where}: got {value!r}; expected a list of {length} numbers")
        return (0.0,) * bins
    if not is_range:
        return tuple(float(number) for number in value)
    low, high = map(float, value)
    # Rounding keeps grid values such as 0.1 + 0.18 * 5 = 1 exact, where an op is the identity.
    return tuple(round(low + (high - low) * i / max(bins - 1, 1), 10) for i in range(bins))


def searchspaces_folder() -> "Path":
    """Return where the shipped `searchspaces/` lie: inside the installed package, or beside it in a checkout."""
    from pathlib import Path

    package = Path(__file__).parent.parent
    inside = package / "searchspaces"
    return inside if inside.is_dir() else package.parent / "searchspaces"


def find_searchspace(name: str) -> "Path":
    """Return the file of a shipped search space by name.

    Raises:
        SearchSpaceError: there is none; names the nearest.
    """
    folder = searchspaces_folder()
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise SearchSpaceError(
            unknown_name("space", "search space", name, sorted(f.stem for f in folder.glob("*.yaml")))
        )
    return path


def load_space(name: str) -> SearchSpace:
    """Return the space of a file in `searchspaces/`, by the file's name.

    A file whose `space:` is itself a name gives the space of that file.
    """
    from rolekd_ray.files import read_yaml  # lazily: importing YAML costs more than this whole room

    path = find_searchspace(name)
    data = read_yaml(path, SearchSpaceError)
    given = data.get("space") if isinstance(data, dict) else None
    if isinstance(given, str) and given != name:
        return load_space(given)
    return parse_space(given, where=f"{path.name}: space", name=name)
