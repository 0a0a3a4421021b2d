"""The search space: PBA's grid against its formulae, the YAML round trip, and what a wrong file is told."""

import copy

import pytest
from hypothesis import given
from policy_strategies import spaces

from rolekd_ray.errors import SearchSpaceError
from rolekd_ray.files import dump_yaml, parse_yaml
from rolekd_ray.policy.space import OP_UNITS, load_space, parse_space, searchspaces_folder
from rolekd_ray.roles import Role

# PBA's released code, as formulae of the level 0..9; the order is that of its unnamed vectors.
PBA = {
    "rotate": lambda level: 3 * level,
    "translate_x": lambda level: level,
    "translate_y": lambda level: level,
    "brightness": lambda level: 0.1 + 0.18 * level,
    "color": lambda level: 0.1 + 0.18 * level,
    "invert": None,
    "sharpness": lambda level: 0.1 + 0.18 * level,
    "posterize": lambda level: 4 - int(0.4 * level),
    "shear_x": lambda level: 0.03 * level,
    "solarize": lambda level: 256 - int(25.6 * level),
    "shear_y": lambda level: 0.03 * level,
    "equalize": None,
    "auto_contrast": None,
    "cutout": lambda level: 2 * level,
    "contrast": lambda level: 0.1 + 0.18 * level,
}
SIGNED = {"rotate", "translate_x", "translate_y", "shear_x", "shear_y"}

GOOD = {
    "probability_bins": 11,
    "magnitude_bins": 10,
    "copies": 1,
    "counts": {0: 0.5, 1: 0.5},
    "ops": {
        "rotate": {"range": [0, 9], "signed": True},
        "invert": {},
        "posterize": {"values": [4, 4, 4, 3, 3, 2, 2, 2, 1, 1]},
    },
    "scalars": {"temperature": {"initial": 4.0, "range": [1, 10], "log": True}},
}


def test_the_pba_space_has_pbas_order_and_strengths():
    space = load_space("cifar10_pba")
    assert [op.name for op in space.ops] == list(PBA)
    assert {op.name for op in space.ops if op.signed} == SIGNED
    assert (space.probability_bins, space.magnitude_bins, space.copies) == (11, 10, 2)
    assert space.counts == (0.2, 0.3, 0.5)
    for name, formula in PBA.items():
        expected = formula and pytest.approx([formula(level) for level in range(10)], abs=1e-9)
        assert space.op(name).magnitudes == expected, name
    assert space.magnitude("color", 5) == 1.0, "bin 5 is exactly the identity, not 0.99…"
    assert space.magnitude("invert", 5) is None
    assert [space.probability(i) for i in (0, 3, 10)] == pytest.approx([0, 0.3, 1])
    assert space.slots() == [*PBA, *PBA]


@pytest.mark.parametrize("path", sorted(searchspaces_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_gives_a_space_under_its_name(path):
    space = load_space(path.stem)
    named = parse_yaml(path.read_text(), where=path.name)["space"]
    assert space.name == (named if isinstance(named, str) else path.stem)
    assert {op.name for op in space.ops} <= set(OP_UNITS)


@given(spaces())
def test_a_space_survives_its_yaml_form(space):
    text = dump_yaml(space.to_dict())
    again = parse_space(parse_yaml(text, where="f"), where="f")
    assert again == space
    assert [again.op(op.name) for op in space.ops] == list(space.ops)


def test_defaults_are_the_papers():
    space = parse_space({"ops": {"rotate": {"range": [0, 30]}}}, where="f")
    assert (space.probability_bins, space.magnitude_bins, space.copies) == (11, 10, 2)
    assert space.counts == (0.2, 0.3, 0.5)
    assert space.op("rotate").magnitudes[0] == 0 and space.op("rotate").magnitudes[-1] == 30
    assert not space.op("rotate").signed


def test_scalars_belong_to_roles():
    scalars = {"t": {"initial": 1, "range": [1, 2]}, "w": {"role": "teacher", "initial": 1, "range": [1, 2]}}
    space = parse_space(GOOD | {"scalars": scalars}, where="f")
    assert [scalar.name for scalar in space.scalars_of(Role.STUDENT)] == ["t"]
    assert [scalar.name for scalar in space.scalars_of(Role.TEACHER)] == ["w"]


WRONG = [
    ("ops.rotat", {"range": [0, 9]}, ["f.ops.rotat: unknown op 'rotat'", "Did you mean 'rotate'?"]),
    ("ops", {}, ["f.ops: got {}"]),
    ("ops", ["rotate"], ["f.ops: got ['rotate']"]),
    ("ops.rotate", "strong", ["f.ops.rotate: got 'strong'"]),
    ("ops.rotate.rnge", [0, 9], ["f.ops.rotate: unknown key 'rnge'", "Did you mean 'range'?"]),
    ("ops.rotate.range", [0], ["f.ops.rotate.range: got [0]", "2 numbers"]),
    ("ops.rotate.range", [0, "9"], ["f.ops.rotate.range: got [0, '9']"]),
    ("ops.rotate.range", [0, float("inf")], ["f.ops.rotate.range"]),
    ("ops.rotate.signed", "yes", ["f.ops.rotate.signed: got 'yes'", "true or false"]),
    ("ops.rotate.values", [1, 2, 3, 4], ["f.ops.rotate: got range, values", "degrees"]),
    ("ops.rotate", {}, ["f.ops.rotate: got no strength"]),
    ("ops.posterize.values", [4, 3, 2], ["f.ops.posterize.values: got [4, 3, 2]", "10 numbers"]),
    ("ops.invert.range", [0, 1], ["f.ops.invert: got range", "has no strength"]),
    ("probability_bins", 1, ["f.probability_bins: got 1", "at least 2"]),
    ("magnitude_bins", 2.5, ["f.magnitude_bins: got 2.5"]),
    ("copies", True, ["f.copies: got True"]),
    ("counts", {0: 0.5, 1: 0.6}, ["f.counts: chances add up to 1.1"]),
    ("counts", {0: 1.5, 1: -0.5}, ["f.counts: got {0: 1.5, 1: -0.5}"]),
    ("counts", {0: 0.5, 0.5: 0.5}, ["f.counts: got {0: 0.5, 0.5: 0.5}"]),
    ("counts", "many", ["f.counts: got 'many'"]),
    ("counts", {4: 1.0}, ["f.counts: 4 ops cannot fire from 3 slots"]),
    ("bins", 3, ["f: unknown key 'bins'"]),
    ("scalars", [], None),  # an empty section is no section
    ("scalars", ["temperature"], ["f.scalars: got ['temperature']"]),
    ("scalars.temperature", 4.0, ["f.scalars.temperature: got 4.0"]),
    ("scalars.temperature.rang", 4.0, ["f.scalars.temperature: unknown key 'rang'", "'range'"]),
    ("scalars.temperature.role", "studnt", ["f.scalars.temperature.role: got 'studnt'", "'student'"]),
    ("scalars.temperature.range", [10, 1], ["f.scalars.temperature.range: got [10, 1]", "low < high"]),
    ("scalars.temperature.range", [0, 10], ["f.scalars.temperature.range: got [0, 10]", "both above 0"]),
    ("scalars.temperature.initial", 11, ["f.scalars.temperature.initial: got 11", "[1, 10]"]),
    ("scalars.temperature.factors", [0.8, -1], ["f.scalars.temperature.factors: got [0.8, -1]"]),
    ("scalars.temperature.resample_probability", 1.2, ["f.scalars.temperature.resample_probability: got 1.2"]),
    ("scalars.temperature.log", 1, ["f.scalars.temperature.log: got 1"]),
    ("scalars.policy", {"initial": 1, "range": [0, 2]}, ["f.scalars.policy: ", "schedule file"]),
]


@pytest.mark.parametrize("key, value, words", WRONG, ids=[f"{key}={value!r}" for key, value, _ in WRONG])
def test_a_wrong_space_is_told_key_value_and_rule(key, value, words):
    data = copy.deepcopy(GOOD)
    *parents, last = key.split(".")
    section = data
    for parent in parents:
        section = section[parent]
    section[last] = value
    if words is None:
        parse_space(data, where="f")
        return
    with pytest.raises(SearchSpaceError) as caught:
        parse_space(data, where="f")
    assert len(caught.value.problems) == 1, caught.value.problems
    for word in words:
        assert word in str(caught.value)


def test_all_problems_are_told_at_once():
    data = GOOD | {"copies": 0, "bins": 3, "ops": {"rotat": {"range": [0, 1]}, "invert": {"range": [0, 1]}}}
    with pytest.raises(SearchSpaceError) as caught:
        parse_space(data, where="f")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("data", [None, 3, "cifar10_pba", [GOOD]])
def test_a_space_that_is_no_mapping(data):
    with pytest.raises(SearchSpaceError, match=r"f: expected a mapping, got"):
        parse_space(data, where="f")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(SearchSpaceError, match=r"unknown search space 'cifar_pba'.*Did you mean 'cifar10_pba'\?"):
        load_space("cifar_pba")
