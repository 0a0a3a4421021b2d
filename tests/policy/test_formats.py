"""Foreign formats: the 18 published files, round trips, Ray's own parser."""

import json
import math
from ast import literal_eval
from random import Random

import pytest
from hypothesis import given
from policy_strategies import schedules, spaces

from rolekd_ray.errors import ScheduleError
from rolekd_ray.policy.formats import export_pba, export_ray, import_schedule, schedule_spec
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy, zero_policy
from rolekd_ray.policy.schedule import Schedule, Segment, merged
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


@given(spaces(agents=False).flatmap(schedules))
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
