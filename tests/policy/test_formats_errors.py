"""Foreign formats: what a wrong file is told, and what PBA's format cannot hold."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolekd_ray.errors import ScheduleError, SearchSpaceError
from rolekd_ray.policy.formats import export_pba, export_ray, import_schedule, schedule_spec
from rolekd_ray.policy.policy import Policy, random_policy, zero_policy
from rolekd_ray.policy.schedule import Schedule, Segment, schedule_text
from rolekd_ray.policy.space import load_space, parse_space
from rolekd_ray.roles import Role

PBA = load_space("cifar10_pba")
OLD, NEW, NEWER = ([i % 10 * k // 9 for i in range(60)] for k in (0, 5, 9))


def good(format: str) -> list[list]:
    """Two rows of one lineage, as data."""
    policy = {"policy": [{"op": "rotate", "probability": 0.2, "magnitude_bin": 7}]}
    config = {
        "pba": lambda numbers: numbers,
        "rolekd": lambda numbers: {"lr": 0.001, "hp_policy": numbers, "bit_w": 2},
        "ray": lambda numbers: {"space": "cifar10_pba", "roles": {"student": policy}},
    }[format]
    return [["1", "0", 2, 3, config(OLD), config(NEW)], ["2", "1", 5, 6, config(NEW), config(NEWER)]]


def text_of(rows: list, format: str) -> str:
    return "".join((repr(row) if format == "pba" else json.dumps(row)) + "\n" for row in rows)


FORMATS = ("pba", "rolekd", "ray")


@pytest.mark.parametrize("format", FORMATS)
def test_the_unbroken_rows_of_these_tests_are_right(format):
    schedule = import_schedule(text_of(good(format), format), format=format, epochs=10)
    assert [s.epochs for s in schedule.roles[Role.STUDENT]] == ([10] if format == "ray" else [3, 3, 4])


def replaced(format: str, row: int, field: int, value) -> str:
    rows = good(format)
    rows[row][field] = value
    return text_of(rows, format)


def with_number(format: str, index: int, value) -> str:
    rows = good(format)
    numbers = rows[1][5] if format == "pba" else rows[1][5]["hp_policy"]
    rows[1][5] = [*numbers[:index], value, *numbers[index + 1 :]]
    if format != "pba":
        rows[1][5] = {"hp_policy": rows[1][5]}
    return text_of(rows, format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "broken, words",
    [
        (lambda f: "", ["f: got an empty file", "[target, source,"]),
        (lambda f: " \n\n", ["f: got an empty file"]),
        (lambda f: "\x00\x01\x02\xff\n", ["f: line 1: is no row, got '\\x00\\x01"]),
        (lambda f: "[" * 20_000, ["f: line 1: is no row", "(20002 characters)"]),
        (lambda f: "9" * 5_000, ["f: line 1: is no row"]),
        (lambda f: "0", ["f: line 1: is no row, got 0; expected 6 fields"]),
        (lambda f: "epoch,policy\n", ["f: line 1: is no row, got 'epoch,policy'"]),
        (lambda f: "__import__('os').abort()", ["f: line 1: is no row"]),
        (lambda f: text_of(good(f), f) + text_of(good(f), f)[:40], ["f: line 3: is no row"]),
        (lambda f: text_of([good(f)[0][:5]], f), ["f: line 1: is no row, got 5 fields; expected 6 fields"]),
        (lambda f: replaced(f, 1, 0, None), ["f: line 2: target: got None", "tag of a trial"]),
        (lambda f: replaced(f, 1, 1, ["1"]), ["f: line 2: source: got ['1']"]),
        (lambda f: replaced(f, 1, 3, "6"), ["f: line 2: source_iter: got '6'"]),
        (lambda f: replaced(f, 1, 3, -1), ["f: line 2: source_iter: got -1", "at least 0"]),
        (lambda f: replaced(f, 1, 3, 6.5), ["f: line 2: source_iter: got 6.5"]),
        (lambda f: replaced(f, 1, 5, "strong"), ["f: line 2: new policy: got 'strong'"]),
        (lambda f: replaced(f, 0, 5, {}), ["f: line 1: new policy: got {}"]),
        (
            lambda f: schedule_text(Schedule(PBA, {Role.STUDENT: (Segment(1, Policy()),)})),
            ["f: is a schedule file already"],
        ),
    ],
)
def test_a_broken_file_is_told_line_value_and_rule(format, broken, words):
    with pytest.raises(ScheduleError) as caught:
        import_schedule(broken(format), format=format, epochs=10, where="f")
    assert len(caught.value.problems) == 1, caught.value.problems
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("format", ["pba", "rolekd"])
@pytest.mark.parametrize(
    "index, value, words",
    [
        (
            0,
            11,
            "f: line 2: new policy[0] (probability bin of rotate, copy 1): got 11; expected a whole number in 0..10",
        ),
        (3, 10, "f: line 2: new policy[3] (magnitude bin of translate_x, copy 1): got 10"),
        (
            31,
            10,
            "f: line 2: new policy[31] (magnitude bin of rotate, copy 2): got 10; expected a whole number in 0..9",
        ),
        (58, -1, "f: line 2: new policy[58] (probability bin of contrast, copy 2): got -1"),
        (0, 0.2, "f: line 2: new policy[0] (probability bin of rotate, copy 1): got 0.2"),
        (0, True, "f: line 2: new policy[0] (probability bin of rotate, copy 1): got True"),
        (0, None, "f: line 2: new policy[0] (probability bin of rotate, copy 1): got None"),
    ],
)
def test_a_value_off_the_grid_is_told_its_slot(format, index, value, words):
    with pytest.raises(ScheduleError) as caught:
        import_schedule(with_number(format, index, value), format=format, epochs=10, where="f")
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith(words)


@pytest.mark.parametrize("count", [0, 30, 59, 61])
def test_a_vector_of_the_wrong_length(count):
    with pytest.raises(ScheduleError, match=rf"got {count} numbers; expected 60 .*2 copies x 15 ops"):
        import_schedule(replaced("pba", 1, 5, [0] * count), format="pba", epochs=10)


@pytest.mark.parametrize("meant", FORMATS)
@pytest.mark.parametrize("given_format", FORMATS)
def test_another_formats_file_is_told_the_right_name(given_format, meant):
    text = text_of(good(meant), meant)
    if given_format == meant or (given_format, meant) == ("ray", "rolekd"):
        import_schedule(text, format=given_format, epochs=10)
        return
    with pytest.raises(ScheduleError, match=rf"f: line 1: .*Did you mean --format {meant}\?"):
        import_schedule(text, format=given_format, epochs=10, where="f")


def test_python_dicts_are_not_json():
    text = "".join(f"{row!r}\n" for row in good("rolekd"))
    with pytest.raises(ScheduleError, match=r"f: line 1: is no row, .*expected a JSON list") as caught:
        import_schedule(text, format="rolekd", epochs=10, where="f")
    assert len(caught.value.problems) == 2


def test_an_unknown_format_is_told_the_nearest():
    with pytest.raises(ScheduleError, match=r"f: unknown format 'rolkd'.*Did you mean 'rolekd'\?"):
        import_schedule("", format="rolkd", epochs=10, where="f")


def test_all_problems_at_once_but_no_more_than_twenty():
    rows = [[*good("pba")[0][:4], [99] * 60, [99] * 60], ["a"], good("pba")[1]]
    with pytest.raises(ScheduleError) as caught:
        import_schedule(text_of(rows, "pba"), format="pba", epochs=10, where="f")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "f: and 101 more problems"
    assert "line 2: is no row" in caught.value.problems[0] and "line 1" in caught.value.problems[1]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spce": 1}, ["unknown key 'spce'", "'space'"]),
        ({"space": "other"}, ["space: got 'other'; expected 'cifar10_pba', as in the first row"]),
        ({"flattened": True}, ["flattened: got True"]),
        ({"roles": {}}, ["got {'space'"]),
        ({"roles": {"studnt": {"policy": []}}}, ["unknown role 'studnt'", "'student'", "roles: got ['studnt']"]),
        ({"roles": {"teacher": {"policy": []}}}, ["roles: got ['teacher']; expected ['student']"]),
        ({"roles": {"student": []}}, ["roles.student: got []"]),
        ({"roles": {"student": {}}}, ["roles.student.policy: got None"]),
        ({"roles": {"student": {"policy": [], "epochs": 3}}}, ["roles.student: got"]),
        ({"roles": {"student": {"policy": [], "temperature": 3}}}, ["roles.student: unknown key 'temperature'"]),
        (
            {"roles": {"student": {"policy": [{"op": "rotate", "probability": 1.7, "magnitude_bin": 12}]}}},
            ["roles.student.policy[0].probability: got 1.7", "roles.student.policy[0].magnitude_bin: got 12"],
        ),
    ],
    ids=str,
)
def test_a_wrong_config_of_ours_is_told_line_place_and_rule(change, words):
    rows = good("ray")
    rows[1][5] = rows[1][5] | change
    with pytest.raises(ScheduleError) as caught:
        import_schedule(text_of(rows, "ray"), format="ray", epochs=10, where="f")
    assert all(problem.startswith("f: line 2: new policy") for problem in caught.value.problems)
    for word in words:
        assert word in str(caught.value)


def test_the_space_of_a_ray_log_is_checked():
    text = text_of(good("ray"), "ray").replace("cifar10_pba", "cifar10_bpa")
    with pytest.raises(SearchSpaceError, match="Did you mean 'cifar10_pba'"):
        import_schedule(text, format="ray", epochs=10)


@given(st.text(), st.sampled_from(FORMATS))
def test_no_text_at_all_ends_in_anything_but_a_clear_error(text, format):
    with pytest.raises(ScheduleError, match="f: "):
        import_schedule(text, format=format, epochs=10, where="f")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["roles", "space", "hp_policy", "student", "policy", "op", "flattened"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.lists(st.lists(JSON, min_size=6, max_size=6), min_size=1, max_size=3), st.sampled_from(FORMATS))
def test_no_rows_at_all_end_in_anything_but_a_clear_error(rows, format):
    for row in rows:
        row[:4] = ["1", "0", 2, 3]
    with pytest.raises((ScheduleError, SearchSpaceError)):
        import_schedule(text_of(rows, "ray"), format=format, epochs=10, where="f")


# ---- what PBA's format cannot hold


def pba_with(**changes):
    return parse_space(PBA.to_dict() | changes, where="f")


@pytest.mark.parametrize(
    "space, words",
    [
        (pba_with(ops={k: v for k, v in PBA.to_dict()["ops"].items() if k != "invert"}), "ops: got rotate"),
        (pba_with(ops=dict(reversed(PBA.to_dict()["ops"].items()))), "in this order"),
        (pba_with(ops=PBA.to_dict()["ops"] | {"rotate": {"range": [0, 45]}}), "strengths: got rotate (0.0, 5.0"),
        (pba_with(probability_bins=21), "probability_bins: got 21; expected 11"),
        (pba_with(magnitude_bins=10, counts={0: 0.5, 1: 0.5}), "counts: got (0.5, 0.5); expected (0.2, 0.3, 0.5)"),
        (pba_with(copies=3), "copies: got 3; expected at most 2"),
    ],
)
def test_pba_export_refuses_a_space_that_the_vectors_would_misstate(space, words):
    schedule = Schedule(space, {Role.STUDENT: (Segment(3, zero_policy(space, Role.STUDENT)),)})
    with pytest.raises(ScheduleError) as caught:
        export_pba(schedule, Role.STUDENT)
    assert len(caught.value.problems) == 1 and words in str(caught.value)


def test_pba_export_accepts_fewer_copies_and_other_names():
    space = pba_with(copies=1, name="mine")
    policy = random_policy(space, Role.STUDENT, Random(1))
    text = export_pba(Schedule(space, {Role.STUDENT: (Segment(3, policy),)}), Role.STUDENT)
    assert import_schedule(text, format="pba", epochs=3).roles[Role.STUDENT] == (Segment(3, policy.completed(PBA)),)


def test_pba_export_refuses_what_it_would_drop():
    schedule = Schedule(PBA, {Role.STUDENT: (Segment(3, Policy((), {"temperature": 2.0})),)}, flattened=True)
    with pytest.raises(ScheduleError) as caught:
        export_pba(schedule, Role.STUDENT)
    assert len(caught.value.problems) == 2
    assert "scalars: got temperature" in str(caught.value) and "flattened: got True" in str(caught.value)
    with pytest.raises(ScheduleError, match="role: got 'teacher'; expected one of student"):
        export_pba(schedule, Role.TEACHER)


CHAINS = parse_space(
    PBA.to_dict()
    | {
        "scalars": {"cutmix.alpha": {"initial": 1, "range": [0.1, 4]}},
        "choices": {
            "agents": {"initial": "policy", "values": ["policy", "policy+cutmix", "none"]},
            "pick.criterion": {"initial": "one", "values": ["one", "other"]},
        },
    },
    where="f",
)


def with_chains(*chains, **scalars):
    of = lambda chain: {"agents": chain} if chain else {}  # noqa: E731
    return Schedule(CHAINS, {Role.STUDENT: tuple(Segment(2, Policy((), scalars, of(chain))) for chain in chains)})


@pytest.mark.parametrize("export", [export_pba, schedule_spec])
def test_formats_of_ops_alone_refuse_other_chains_and_name_them(export):
    with pytest.raises(ScheduleError) as caught:
        export(with_chains("policy", "policy+cutmix", "none", "policy+cutmix"), Role.STUDENT)
    (problem,) = caught.value.problems
    assert "agents: got policy+cutmix in epochs 3–4, 7–8; none in epochs 5–6; expected policy, for" in problem
    assert export(with_chains("policy"), Role.STUDENT) == export(with_chains(None), Role.STUDENT)


def test_settings_of_a_chain_that_is_not_told_are_not_dropped_silently():
    alpha = {"cutmix.alpha": 2.0}
    with pytest.raises(ScheduleError, match=r"schedule: agents: got cutmix\.alpha, settings of a chain not told"):
        schedule_spec(with_chains(None, **alpha), Role.STUDENT)
    schedule_spec(with_chains("policy", **alpha), Role.STUDENT)  # not in force
    with pytest.raises(ScheduleError, match=r"scalars: got cutmix\.alpha; expected none"):
        export_pba(with_chains("policy", **alpha), Role.STUDENT)


def test_pba_export_refuses_other_choices():
    policy = Policy((), {}, {"agents": "policy", "pick.criterion": "other"})
    with pytest.raises(ScheduleError) as caught:
        export_pba(Schedule(CHAINS, {Role.STUDENT: (Segment(1, policy),)}), Role.STUDENT)
    assert caught.value.problems == (
        "export to pba: choices: got pick.criterion; expected none, the vectors hold ops only",
    )


def test_rays_format_holds_chains_and_is_told_what_is_wrong_with_them():
    schedule = with_chains("policy", "policy+cutmix", **{"cutmix.alpha": 2.0})
    text = export_ray(schedule)
    assert import_schedule(text, format="ray", epochs=4) == schedule
    with pytest.raises(
        ScheduleError, match=r"new policy: roles\.student\.agents\.chain: got 'cutmix'; expected one of"
    ):
        import_schedule(text.replace('"policy+cutmix", "cutmix.a', '"cutmix", "cutmix.a'), format="ray", epochs=4)
