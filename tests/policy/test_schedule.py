"""Schedules: which policy holds when, other lengths, variants, and the YAML file."""

import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_strategies import schedules

from rolekd_ray.errors import ScheduleError, SearchSpaceError
from rolekd_ray.files import parse_yaml, write_atomically
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.schedule import (
    Schedule,
    Segment,
    join,
    load_schedule,
    merged,
    schedule_from_dict,
    schedule_text,
    schedule_to_dict,
)
from rolekd_ray.policy.space import load_space, parse_space
from rolekd_ray.roles import Role

PBA = load_space("cifar10_pba")
A, B, C = (Policy((OpSetting("rotate", i, i),)) for i in (1, 2, 3))


def student(*segments: tuple[int, Policy], **settings) -> Schedule:
    return Schedule(PBA, {Role.STUDENT: tuple(Segment(*segment) for segment in segments)}, **settings)


def test_the_policy_of_each_epoch():
    schedule = student((2, A), (1, B), (2, C))
    assert schedule.epochs == 5
    assert [schedule.policy_at(Role.STUDENT, epoch) for epoch in range(7)] == [A, A, B, C, C, C, C]
    assert schedule.policy_at(Role.TEACHER, 0) == Policy(), "an absent role has no policy"
    assert schedule.policies_at(Role.STUDENT, 2) == [(1.0, B)]
    assert schedule.policies_at(Role.TEACHER, 2) == [(1.0, Policy())]


def test_roles_of_one_schedule_have_one_length():
    with pytest.raises(AssertionError):
        Schedule(PBA, {Role.STUDENT: (Segment(2, A),), Role.TEACHER: (Segment(3, A),)})
    with pytest.raises(AssertionError):
        Schedule(PBA, {})


@given(schedules())
def test_policy_at_agrees_with_the_segments_laid_end_to_end(schedule):
    for role, segments in schedule.roles.items():
        laid_out = [segment.policy for segment in segments for _ in range(segment.epochs)]
        assert len(laid_out) == schedule.epochs
        assert [schedule.policy_at(role, epoch) for epoch in range(schedule.epochs)] == laid_out


def numbered(segments):
    """Equal policies made different, so that it can be seen which is which."""
    return tuple(Segment(s.epochs, replace(s.policy, scalars={"number": number})) for number, s in enumerate(segments))


@given(schedules(), st.integers(1, 1000))
def test_stretching_keeps_length_order_and_shares(schedule, epochs):
    schedule = replace(schedule, roles={role: numbered(segments) for role, segments in schedule.roles.items()})
    stretched = schedule.stretched(epochs)
    assert stretched.epochs == epochs
    assert stretched.space == schedule.space and stretched.flattened == schedule.flattened
    for role, segments in schedule.roles.items():
        # A boundary is at most half an epoch off; so is the epoch at which any policy starts.
        at = [stretched.policy_at(role, epoch) for epoch in range(epochs)]
        passed = 0
        for segment in segments:
            start, passed = passed, passed + segment.epochs
            for epoch in range(epochs):
                whole = start * epochs <= (epoch - 0.5) * schedule.epochs
                if whole and (epoch + 1.5) * schedule.epochs <= passed * epochs:
                    assert at[epoch] == segment.policy
        new = stretched.roles[role]
        assert all(segment.epochs >= 1 for segment in new)
        lengths = iter(new)
        following = next(lengths, None)
        for segment in segments:  # the new segments are a subsequence of the old ones, each within one epoch
            share = segment.epochs * epochs / schedule.epochs
            if following is not None and following.policy == segment.policy and abs(following.epochs - share) <= 1:
                following = next(lengths, None)
            else:
                assert share <= 1, "only a segment of less than one epoch may vanish"
        assert following is None


@given(schedules())
def test_stretching_to_the_same_length_changes_nothing(schedule):
    assert schedule.stretched(schedule.epochs) == schedule


@given(schedules(), st.integers(2, 5))
def test_stretching_to_a_multiple_is_exact_and_undone_by_shrinking(schedule, factor):
    longer = schedule.stretched(schedule.epochs * factor)
    for role, segments in schedule.roles.items():
        assert [s.epochs for s in longer.roles[role]] == [factor * s.epochs for s in segments]
    assert longer.stretched(schedule.epochs) == schedule


def test_stretching_rounds_boundaries_so_that_no_share_drifts():
    """PBA truncates each segment and gives the rest to the last: 30 x 1 epoch at 1.9 would be 30 and 27 more."""
    policies = [Policy((OpSetting("rotate", i % 10 + 1, i % 7),)) for i in range(30)]
    longer = student(*((1, policy) for policy in policies)).stretched(57)
    lengths = [segment.epochs for segment in longer.roles[Role.STUDENT]]
    assert sum(lengths) == 57 and set(lengths) == {1, 2}
    assert [s.epochs for s in student((1, A), (98, B), (1, C)).stretched(10).roles[Role.STUDENT]] == [10]


def test_last_holds_the_last_policy_and_only_keeps_one_role():
    both = Schedule(PBA, {Role.STUDENT: (Segment(2, A), Segment(3, B)), Role.TEACHER: (Segment(5, C),)})
    last = both.last()
    assert last.epochs == 5
    assert last.roles == {Role.STUDENT: (Segment(5, B),), Role.TEACHER: (Segment(5, C),)}
    assert both.only(Role.STUDENT).roles == {Role.STUDENT: (Segment(2, A), Segment(3, B))}


def test_flattened_mixes_all_policies_by_their_epochs():
    schedule = student((3, A), (1, B))
    flattened = schedule.flatten()
    assert schedule.flattened is False and flattened.flattened is True
    assert flattened.policies_at(Role.STUDENT, 0) == [(0.75, A), (0.25, B)]
    assert flattened.policies_at(Role.STUDENT, 3) == flattened.policies_at(Role.STUDENT, 0)
    assert flattened.policies_at(Role.TEACHER, 0) == [(1.0, Policy())]


@given(schedules())
def test_flattened_chances_add_up_to_one(schedule):
    for role in schedule.roles:
        assert sum(chance for chance, _ in schedule.flatten().policies_at(role, 0)) == pytest.approx(1)


def test_merged_joins_neighbours_only():
    assert merged([Segment(1, A), Segment(2, A), Segment(3, B), Segment(4, A)]) == (
        Segment(3, A),
        Segment(3, B),
        Segment(4, A),
    )


def test_join_stretches_to_the_longest_and_refuses_what_does_not_go_together():
    teacher = Schedule(PBA, {Role.TEACHER: (Segment(1, C), Segment(1, B))})
    both = join([student((4, A)), teacher])
    assert both.roles == {Role.STUDENT: (Segment(4, A),), Role.TEACHER: (Segment(2, C), Segment(2, B))}
    other = Schedule(parse_space({"ops": {"invert": {}}}, where="f"), {Role.STUDENT: (Segment(4, Policy()),)})
    with pytest.raises(ScheduleError) as caught:
        join([student((4, A)), other.flatten()])
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "role student stands twice" in text and "'cifar10_pba' and 'inline'" in text and "flattened" in text


@given(schedules())
def test_a_schedule_survives_its_yaml_text(schedule):
    text = schedule_text(schedule)
    assert schedule_from_dict(parse_yaml(text, where="f"), where="f") == schedule.firing()


@given(schedules())
def test_firing_keeps_every_view_and_is_idempotent(schedule):
    firing = schedule.firing()
    assert firing.firing() == firing
    for role in schedule.roles:
        for epoch in range(schedule.epochs):
            assert firing.policy_at(role, epoch).settings == schedule.policy_at(role, epoch).firing()
            assert firing.policy_at(role, epoch).scalars == schedule.policy_at(role, epoch).scalars


def test_a_shipped_space_is_named_and_another_stands_inline():
    assert schedule_to_dict(student((1, A)))["space"] == "cifar10_pba"
    changed = parse_space(PBA.to_dict() | {"copies": 1}, where="f")
    assert changed.name == "cifar10_pba", "the same name, but not the same space"
    assert schedule_to_dict(Schedule(changed, {Role.STUDENT: (Segment(1, A),)}))["space"]["copies"] == 1


DESIGNS_EXAMPLE = """\
format: rolekd.schedule/1
space: cifar10_pba                 # a file of searchspaces/ by name, or the space itself inline
roles:
  student:
    segments:                      # in order; their epochs add up to the schedule's length
      - epochs: 57
        policy: []                 # no op can fire
      - epochs: 3
        policy:
          - {op: rotate, probability: 0.2, magnitude_bin: 7}
          - {op: translate_x, probability: 0.6, magnitude_bin: 4}
"""


def test_the_file_of_the_manual(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(DESIGNS_EXAMPLE)
    schedule = load_schedule(path)
    fires = Policy((OpSetting("rotate", 2, 7), OpSetting("translate_x", 6, 4)))
    assert schedule == student((57, Policy()), (3, fires))
    write_atomically(path, schedule_text(schedule))
    assert load_schedule(path) == schedule


SPACE = {
    "ops": {"rotate": {"range": [0, 9]}, "invert": {}},
    "scalars": {"temperature": {"initial": 4.0, "range": [1, 10]}},
}
SETTING = {"op": "rotate", "probability": 0.2, "magnitude_bin": 7}
GOOD = {
    "format": "rolekd.schedule/1",
    "space": SPACE,
    "roles": {
        "student": {"segments": [{"epochs": 2, "policy": [SETTING], "temperature": 3.2}, {"epochs": 3, "policy": []}]},
        "teacher": {"segments": [{"epochs": 5, "policy": []}]},
    },
}
FIRST = ("roles", "student", "segments", 0)

WRONG = [
    (("format",), "rolekd.schedule/9", ["f: format: got 'rolekd.schedule/9'", "'rolekd.schedule/1'"]),
    (("rols",), {}, ["f: unknown key 'rols'", "Did you mean 'roles'?"]),
    (("flattened",), "yes", ["f: flattened: got 'yes'", "true or false"]),
    (("roles",), {}, ["f: roles: got {}", "teacher, student or both"]),
    (("roles", "studnt"), {"segments": []}, ["f: roles: unknown role 'studnt'", "Did you mean 'student'?"]),
    (("roles", "teacher"), None, ["f: roles.teacher.segments: got None"]),
    (("roles", "teacher", "segments"), [], ["f: roles.teacher.segments: got []"]),
    (("roles", "teacher", "segments", 0), 5, ["f: roles.teacher.segments[0]: got 5"]),
    (("roles", "teacher", "segmnts"), [], ["f: roles.teacher: unknown key 'segmnts'", "Did you mean 'segments'?"]),
    (("roles", "teacher", "segments", 0, "epochs"), 6, ["f: roles: lengths differ", "'student': 5", "'teacher': 6"]),
    (("roles", "teacher", "segments", 0, "temperature"), 2.0, ["f: roles.teacher.segments[0]: unknown key"]),
    ((*FIRST, "epochs"), 0, ["segments[0].epochs: got 0", "at least 1"]),
    ((*FIRST, "epochs"), 2.5, ["segments[0].epochs: got 2.5"]),
    ((*FIRST, "epochs"), True, ["segments[0].epochs: got True"]),
    ((*FIRST, "temprature"), 3.0, ["f: roles.student.segments[0]: unknown key", "Did you mean 'temperature'?"]),
    ((*FIRST, "temperature"), 11, ["segments[0].temperature: got 11", "[1, 10]"]),
    ((*FIRST, "temperature"), "hot", ["segments[0].temperature: got 'hot'"]),
    ((*FIRST, "temperature"), float("nan"), ["segments[0].temperature: got nan"]),
    ((*FIRST, "policy"), None, ["segments[0].policy: got None", "expected a list"]),
    ((*FIRST, "policy", 0, "op"), "rotat", ["segments[0].policy[0]: unknown op 'rotat'", "Did you mean 'rotate'?"]),
    ((*FIRST, "policy", 0, "probability"), 1.7, ["segments[0].policy[0].probability: got 1.7", "[0, 1]"]),
    ((*FIRST, "policy", 0, "probability"), 0.25, ["segments[0].policy[0].probability: got 0.25", "multiple of 1/10"]),
    ((*FIRST, "policy", 0, "magnitude_bin"), 10, ["segments[0].policy[0].magnitude_bin: got 10", "0..9"]),
    ((*FIRST, "policy", 0, "magnitude"), 9, ["segments[0].policy[0]: got", "op, probability, magnitude_bin"]),
    ((*FIRST, "policy"), [SETTING] * 3, ["segments[0].policy: op 'rotate' stands 3 times", "at most 2"]),
]


@pytest.mark.parametrize("path, value, words", WRONG, ids=[".".join(map(str, p)) + f"={v!r}" for p, v, _ in WRONG])
def test_a_wrong_file_is_told_place_value_and_rule(path, value, words):
    data = copy.deepcopy(GOOD)
    section = data
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(ScheduleError) as caught:
        schedule_from_dict(data, where="f")
    problems = caught.value.problems
    assert len(problems) == 1, problems
    for word in words:
        assert word in problems[0]


def test_the_unbroken_file_of_the_table_is_right():
    schedule = schedule_from_dict(GOOD, where="f")
    assert schedule.epochs == 5 and schedule.policy_at(Role.STUDENT, 0).scalars == {"temperature": 3.2}


def test_all_problems_are_told_at_once():
    data = copy.deepcopy(GOOD) | {"x": 1}
    segment = data["roles"]["student"]["segments"][0]
    segment |= {"temperature": 0, "policy": [SETTING | {"op": "x", "probability": 7}]}
    with pytest.raises(ScheduleError) as caught:
        schedule_from_dict(data, where="f")
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("text", ["", "just words", "[1, 2]", "a: [", "{a: 1, a: 2}", "\x00"])
def test_a_file_that_is_no_schedule(tmp_path, text):
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(ScheduleError, match=r"schedule\.yaml: "):
        load_schedule(path)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ScheduleError, match="no such file"):
        load_schedule(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(ScheduleError, match=r"binary\.yaml: cannot be read as text"):
        load_schedule(tmp_path / "binary.yaml")
    with pytest.raises(ScheduleError, match="cannot be read"):
        load_schedule(tmp_path)


@pytest.mark.parametrize("space", ["cifar10_bpa", None, {"ops": {"rotat": {}}}, ["rotate"]])
def test_a_wrong_space_has_its_own_error(space):
    with pytest.raises(SearchSpaceError):
        schedule_from_dict(GOOD | {"space": space}, where="f")
