"""Foreign formats: the 18 published files, round trips, Ray's own parser, and what a wrong file is told."""

import json
import math
from ast import literal_eval
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import schedules

from rolekd_ray.errors import ScheduleError, SearchSpaceError
from rolekd_ray.policy.formats import export_pba, export_ray, import_schedule, schedule_spec
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy, zero_policy
from rolekd_ray.policy.schedule import Schedule, Segment, merged, schedule_text
from rolekd_ray.policy.space import load_space, parse_space
from rolekd_ray.roles import Role

PBA = load_space("cifar10_pba")
ROLE_KD = "role_kd_cifar100_resnet18_2bit"

# Computed from the authors' logs, before this code was written.
LENGTHS = {
    0: [57, 3, 72, 39, 29],
    1: [57, 3, 72, 36, 3, 29],
    2: [57, 3, 72, 39, 9, 6, 6, 8],
    3: [57, 3, 140],
    4: [57, 3, 135, 5],
    5: [57, 3, 135, 5],
    6: [57, 3, 72, 39, 18, 11],
    7: [57, 3, 135, 5],
    8: [57, 3, 138, 2],
    9: [57, 3, 102, 38],
    10: [57, 3, 123, 9, 8],
    11: [57, 3, 138, 2],
    12: [57, 3, 102, 27, 11],
    13: [57, 3, 72, 39, 18, 3, 8],
    14: [57, 3, 135, 3, 2],
    15: [57, 3, 72, 36, 3, 27, 2],
}
PBA_LENGTHS = {
    "rcifar10_16_wrn": [12, 22, 20, 20, 1, 6, 3, 27, 6, 21, 6, 9, 7, 17, 6, 12, 5],
    "rsvhn_16_wrn": [9, 15, 6, 8, 7, 24, 6, 25, 4, 4, 39, 6, 6, 1],
}
# Probability in tenths and magnitude bin of policy 0's last segment, copy 1 then copy 2.
LAST_OF_POLICY_0 = {
    "rotate": [(2, 7), (4, 1)],
    "translate_x": [(6, 4), (0, 2)],
    "translate_y": [(4, 3), (0, 2)],
    "brightness": [(8, 9), (0, 1)],
    "color": [(10, 6), (1, 4)],
    "invert": [(0, 6), (0, 3)],
    "sharpness": [(1, 8), (2, 4)],
    "posterize": [(6, 0), (5, 3)],
    "shear_x": [(1, 3), (0, 5)],
    "solarize": [(0, 0), (2, 7)],
    "shear_y": [(6, 2), (2, 4)],
    "equalize": [(5, 3), (3, 8)],
    "auto_contrast": [(8, 7), (3, 0)],
    "cutout": [(3, 4), (3, 4)],
    "contrast": [(0, 4), (10, 6)],
}


def vector(policy: Policy) -> list[int]:
    return [number for s in policy.settings for number in (s.probability_bin, s.magnitude_bin)]


def lengths(schedule: Schedule, role: Role = Role.STUDENT) -> list[int]:
    return [segment.epochs for segment in schedule.roles[role]]


# ---- the published files


@pytest.fixture(scope="module")
def logs(shared_data) -> dict[str, tuple[str, str, int]]:
    """Text, format and length of the 18 published schedules by name."""
    folder = shared_data / "published"
    found = {f"policy_{i}": ((folder / ROLE_KD / f"pbt_policy_{i}.txt"), "rolekd", 200) for i in LENGTHS}
    found |= {name: (folder / "pba" / f"{name}.txt", "pba", sum(PBA_LENGTHS[name])) for name in PBA_LENGTHS}
    return {name: (path.read_text(), format, epochs) for name, (path, format, epochs) in found.items()}


ALL = [*(f"policy_{i}" for i in LENGTHS), *PBA_LENGTHS]
EXPECTED = {f"policy_{i}": numbers for i, numbers in LENGTHS.items()} | PBA_LENGTHS


@pytest.mark.parametrize("name", ALL)
def test_published_schedules_have_the_known_segments(logs, name):
    text, format, epochs = logs[name]
    schedule = import_schedule(text, format=format, epochs=epochs, role=Role.TEACHER, where=name)
    assert list(schedule.roles) == [Role.TEACHER]
    assert schedule.space == PBA and not schedule.flattened
    assert lengths(schedule, Role.TEACHER) == EXPECTED[name]
    assert all(len(s.policy.settings) == 30 for s in schedule.roles[Role.TEACHER])
    assert schedule.roles[Role.TEACHER][0].policy == zero_policy(PBA, Role.TEACHER)


def test_the_last_policy_of_published_policy_0(logs):
    text, format, epochs = logs["policy_0"]
    last = import_schedule(text, format=format, epochs=epochs).roles[Role.STUDENT][-1].policy
    expected = [OpSetting(op, *LAST_OF_POLICY_0[op][copy]) for copy in (0, 1) for op in LAST_OF_POLICY_0]
    assert list(last.settings) == expected


def test_published_lineages_agree_with_the_population_replayed_event_by_event(logs, shared_data):
    """The global log, 279 exploits in order, gives every lineage anew; the importer never reads it."""
    text = (shared_data / "published" / ROLE_KD / "pbt_global.txt").read_text()
    lived = {str(trial): [(0, [0] * 60)] for trial in range(16)}  # (first epoch, vector)
    for target, source, _, epoch, before, after in map(json.loads, text.splitlines()):
        inherited = [change for change in lived[source] if change[0] < epoch]
        assert inherited[-1][1] == before["hp_policy"]
        lived[target] = [*inherited, (epoch, after["hp_policy"])]
    for trial in range(16):
        schedule = import_schedule(logs[f"policy_{trial}"][0], format="rolekd", epochs=200)
        starts = [sum(lengths(schedule)[:i]) for i in range(len(lengths(schedule)))]
        policies = [vector(segment.policy) for segment in schedule.roles[Role.STUDENT]]
        assert list(zip(starts, policies)) == lived[str(trial)], trial


@pytest.mark.parametrize("name", ALL)
def test_published_schedules_survive_every_export(logs, name):
    text, format, epochs = logs[name]
    schedule = import_schedule(text, format=format, epochs=epochs)
    assert import_schedule(export_pba(schedule, Role.STUDENT), format="pba", epochs=epochs) == schedule
    assert import_schedule(export_ray(schedule), format="ray", epochs=epochs) == schedule.firing()
    if format == "rolekd":
        assert import_schedule(text, format="ray", epochs=epochs) == schedule, "Ray wrote them; hp_policy is enough"


@pytest.mark.parametrize("name", PBA_LENGTHS)
def test_the_export_holds_the_published_vectors(logs, name):
    text, _, epochs = logs[name]
    schedule = import_schedule(text, format="pba", epochs=epochs)
    published = [literal_eval(line) for line in text.splitlines()]
    ours = [literal_eval(line) for line in export_pba(schedule, Role.STUDENT).splitlines()]
    assert [row[3:] for row in ours] == [row[3:] for row in published], "epochs, old and new vectors"
    assert [(row[1], row[0]) for row in ours] == [(str(i), str(i + 1)) for i in range(len(ours))], "one chain"


def test_the_published_global_log_is_no_schedule(shared_data):
    text = (shared_data / "published" / ROLE_KD / "pbt_global.txt").read_text()
    with pytest.raises(ScheduleError, match=r"log: line 2: .*ancestry of one trial") as caught:
        import_schedule(text, format="rolekd", epochs=200, where="log")
    assert len(caught.value.problems) == 21 and "more problems" in caught.value.problems[-1]


# ---- the lineage rule


def pba_row(target, source, epoch, before, after) -> str:
    return repr([target, source, epoch - 1, epoch, before, after]) + "\n"


OLD, NEW, NEWER = ([i % 10 * k // 9 for i in range(60)] for k in (0, 5, 9))


def test_rows_before_a_broken_chain_are_dropped():
    stale = pba_row("7", "1", 50, NEWER, NEWER)  # later than all that follows: it must not count
    text = stale + pba_row("7", "2", 10, OLD, NEW) + pba_row("9", "7", 14, NEW, NEWER)
    schedule = import_schedule(text, format="pba", epochs=20)
    assert lengths(schedule) == [10, 4, 6]
    assert [vector(s.policy) for s in schedule.roles[Role.STUDENT]] == [OLD, NEW, NEWER]


def test_segments_without_an_epoch_are_dropped():
    text = pba_row("1", "0", 0, OLD, NEW) + pba_row("2", "1", 5, NEW, OLD) + pba_row("3", "2", 5, OLD, NEWER)
    schedule = import_schedule(text, format="pba", epochs=6)
    assert [(s.epochs, vector(s.policy)) for s in schedule.roles[Role.STUDENT]] == [(5, NEW), (1, NEWER)]
    schedule = import_schedule(text, format="pba", epochs=5)
    assert lengths(schedule) == [5]


def test_equal_neighbours_stay_apart():
    schedule = import_schedule(pba_row("1", "0", 4, NEW, NEW), format="pba", epochs=6)
    assert lengths(schedule) == [4, 2]


@pytest.mark.parametrize("epochs", [197, 1, 0, -5])
def test_too_few_epochs_are_told_how_many_are_needed(logs, epochs):
    with pytest.raises(ScheduleError, match=rf"f: epochs: got {epochs}; expected at least 198"):
        import_schedule(logs["policy_15"][0], format="rolekd", epochs=epochs, where="f")


def test_epochs_that_run_backwards():
    text = pba_row("1", "0", 9, OLD, NEW) + "\n" + pba_row("2", "1", 5, NEW, NEWER)
    with pytest.raises(ScheduleError, match=r"f: line 3: source_iter: got 5; expected at least 9, as in line 1"):
        import_schedule(text, format="pba", epochs=20, where="f")


# ---- round trips


@given(schedules(space=PBA, flattened=False))
def test_pba_round_trip_is_exact_for_full_policies(schedule):
    for role in schedule.roles:
        one = Schedule(PBA, {role: schedule.roles[role]})
        text = export_pba(one, role)
        assert import_schedule(text, format="pba", epochs=one.epochs, role=role) == one
        assert all(isinstance(literal_eval(line), list) for line in text.splitlines())


@given(schedules(space=PBA, flattened=False))
def test_pba_export_fills_missing_slots_with_zeros(schedule):
    for role, segments in schedule.firing().roles.items():
        full = tuple(Segment(s.epochs, s.policy.completed(PBA)) for s in segments)
        text = export_pba(Schedule(PBA, {role: segments}), role)
        assert import_schedule(text, format="pba", epochs=schedule.epochs, role=role).roles[role] == full


@given(schedules())
def test_ray_round_trip_is_exact_for_what_fires(schedule):
    assert import_schedule(export_ray(schedule), format="ray", epochs=schedule.epochs) == schedule.firing()


@pytest.mark.parametrize("epochs", [1, 7])
def test_a_single_segment_survives(epochs):
    policy = random_policy(PBA, Role.STUDENT, Random(0))
    schedule = Schedule(PBA, {Role.STUDENT: (Segment(epochs, policy),)})
    assert import_schedule(export_pba(schedule, Role.STUDENT), format="pba", epochs=epochs) == schedule
    assert import_schedule(export_ray(schedule), format="ray", epochs=epochs) == schedule.firing()
    longer = import_schedule(export_pba(schedule, Role.STUDENT), format="pba", epochs=9)
    assert longer.epochs == 9 and merged(longer.roles[Role.STUDENT]) == (Segment(9, policy),)


# ---- Ray's own parser

TEMPERATURE = {"scalars": {"temperature": {"initial": 4.0, "range": [1, 10]}}}


def test_rays_replay_reads_our_export(tmp_path):
    from ray.tune.schedulers import PopulationBasedTrainingReplay

    space = parse_space(PBA.to_dict() | TEMPERATURE, where="f")
    a, b, c = ((OpSetting("rotate", i, i), OpSetting("invert", 0, 3)) for i in (1, 2, 3))
    schedule = Schedule(
        space,
        {
            Role.STUDENT: (Segment(2, Policy(a, {"temperature": 4.0})), Segment(4, Policy(b, {"temperature": 3.25}))),
            Role.TEACHER: (Segment(5, Policy(c)), Segment(1, Policy())),
        },
    )
    path = tmp_path / "pbt_policy_0.txt"
    path.write_text(export_ray(schedule))
    replay = PopulationBasedTrainingReplay(str(path))

    def student(op_bin: int, temperature: float) -> dict:
        setting = {"op": "rotate", "probability": op_bin / 10, "magnitude_bin": op_bin}
        return {"policy": [setting], "temperature": temperature}

    teacher = {"policy": [{"op": "rotate", "probability": 0.3, "magnitude_bin": 3}]}
    assert replay.config["roles"] == {"student": student(1, 4.0), "teacher": teacher}
    assert [step for step, _ in replay._policy] == [2, 5]
    assert [config["roles"] for _, config in replay._policy] == [
        {"student": student(2, 3.25), "teacher": teacher},
        {"student": student(2, 3.25), "teacher": {"policy": []}},
    ]
    assert parse_space(replay.config["space"], where="f") == space


def test_rays_replay_never_reaches_the_change_of_a_single_policy(tmp_path):
    from ray.tune.schedulers import PopulationBasedTrainingReplay

    path = tmp_path / "pbt_policy_0.txt"
    path.write_text(export_ray(Schedule(PBA, {Role.STUDENT: (Segment(7, Policy()),)})))
    replay = PopulationBasedTrainingReplay(str(path))
    assert replay.config == {"space": "cifar10_pba", "roles": {"student": {"policy": []}}}
    assert replay._policy == [(7, replay.config)]


@pytest.mark.parametrize("name", ["policy_0", "policy_15", "rsvhn_16_wrn"])
def test_rays_replay_reads_the_published_schedules_we_export(logs, tmp_path, name):
    from ray.tune.schedulers import PopulationBasedTrainingReplay

    text, format, epochs = logs[name]
    schedule = import_schedule(text, format=format, epochs=epochs)
    path = tmp_path / "pbt_policy_0.txt"
    path.write_text(export_ray(schedule))
    steps = [step for step, _ in PopulationBasedTrainingReplay(str(path))._policy]
    assert steps == [sum(EXPECTED[name][: i + 1]) for i in range(len(EXPECTED[name]) - 1)]


# ---- wrong files


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
    assert lengths(schedule) == ([10] if format == "ray" else [3, 3, 4])


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
        import_schedule(pba_row("1", "0", 3, [0] * count, OLD), format="pba", epochs=10)


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


# ---- plain data


def test_the_plain_data_of_a_small_schedule():
    space = parse_space(PBA.to_dict() | TEMPERATURE, where="f")
    settings = (
        OpSetting("rotate", 2, 7),
        OpSetting("cutout", 0, 9),
        OpSetting("invert", 10, 4),
        OpSetting("posterize", 3, 9),
    )
    segments = (Segment(57, Policy((), {"temperature": 4.0})), Segment(3, Policy(settings, {"temperature": 2.0})))
    schedule = Schedule(space, {Role.STUDENT: segments})
    assert schedule_spec(schedule, Role.STUDENT) == {
        "epochs": 60,
        "counts": [0.2, 0.3, 0.5],
        "segments": [
            {"epochs": 57, "settings": []},
            {
                "epochs": 3,
                "settings": [
                    ["rotate", 0.2, 21.0, True],
                    ["invert", 1.0, None, False],
                    ["posterize", 0.3, 1.0, False],
                ],
            },
        ],
        "flattened": False,
    }
    assert schedule_spec(schedule.flatten(), Role.STUDENT)["flattened"] is True
    with pytest.raises(ScheduleError, match="role: got 'teacher'; expected one of student"):
        schedule_spec(schedule, Role.TEACHER)


@given(schedules())
def test_plain_data_is_json_and_says_what_the_schedule_says(schedule):
    for role in schedule.roles:
        spec = schedule_spec(schedule, role)
        assert json.loads(json.dumps(spec)) == spec
        assert sum(segment["epochs"] for segment in spec["segments"]) == spec["epochs"] == schedule.epochs
        assert math.isclose(sum(spec["counts"]), 1)
        laid_out = [segment["settings"] for segment in spec["segments"] for _ in range(segment["epochs"])]
        for epoch, settings in enumerate(laid_out):
            expected = schedule.policy_at(role, epoch).firing()
            assert [row[0] for row in settings] == [s.op for s in expected]
            for (op, probability, magnitude, signed), setting in zip(settings, expected):
                assert probability == pytest.approx(schedule.space.probability(setting.probability_bin))
                assert magnitude == schedule.space.magnitude(op, setting.magnitude_bin)
                assert signed == schedule.space.op(op).signed
