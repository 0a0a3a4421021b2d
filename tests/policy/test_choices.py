"""Choices that evolve: how a space reads them, how they mutate, and how files hold them."""

import copy
import json
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_searches import live_through, made_rule
from policy_strategies import policies, spaces
from scipy import stats

from rolekd_ray.errors import ScheduleError, SearchSpaceError
from rolekd_ray.files import parse_yaml
from rolekd_ray.policy.explore import explore, explore_choice
from rolekd_ray.policy.jobs import policies_from_dict, policies_to_dict
from rolekd_ray.policy.lineage import ancestors, schedule_of
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy, zero_policy
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule, Segment, schedule_from_dict, schedule_text, schedule_to_dict
from rolekd_ray.policy.space import ChoiceSpec, parse_space
from rolekd_ray.roles import Role

GOOD = parse_yaml(
    """
ops: {rotate: {range: [0, 9]}, invert: {}}
scalars:
  temperature: {initial: 4.0, range: [1, 10]}
  cutmix.alpha: {initial: 1.0, range: [0.1, 4], log: true}
choices:
  agents: {role: student, initial: policy, values: [policy, policy + cutmix, [randaugment, cutmix]]}
  pick.criterion: {initial: teacher_entropy, values: [teacher_entropy, student_entropy], resample_probability: 0.5}
  mode: {role: teacher, initial: slow, values: [slow, fast]}
""",
    where="f",
)
SPACE = parse_space(GOOD, where="f")
AGENTS = SPACE.choices[0]


def test_a_space_reads_choices_and_writes_chains_in_one_way():
    chains = ("policy", "policy+cutmix", "randaugment+cutmix")
    assert ChoiceSpec("agents", Role.STUDENT, "policy", chains, 0.25) == AGENTS
    assert [choice.name for choice in SPACE.choices_of(Role.STUDENT)] == ["agents", "pick.criterion"]
    assert [choice.name for choice in SPACE.choices_of(Role.TEACHER)] == ["mode"]
    assert SPACE.choices[1].resample_probability == 0.5
    assert SPACE.to_dict()["choices"]["agents"]["values"] == ["policy", "policy+cutmix", "randaugment+cutmix"]


def test_a_space_without_choices_has_no_word_of_them_in_its_data():
    data = {key: value for key, value in GOOD.items() if key != "choices"}
    assert "choices" not in parse_space(data, where="f").to_dict()
    assert parse_space(data | {"choices": {}}, where="f") == parse_space(data, where="f")


WRONG = [
    ("choices", ["agents"], ["f.choices: got ['agents']; expected a mapping"]),
    ("choices.agents", "policy", ["f.choices.agents: got 'policy'; expected a mapping such as"]),
    ("choices.agents.values", None, ["f.choices.agents.values: got none", "at least 2 values"]),
    ("choices.agents.values", ["policy"], ["f.choices.agents.values: got ['policy']", "at least 2"]),
    ("choices.agents.values", "policy", ["f.choices.agents.values: got 'policy'", "at least 2"]),
    ("choices.agents.values", ["policy", "cutmix", ["cutmix"]], ["values: got 'cutmix' 2 times", "once"]),
    ("choices.agents.values", ["policy", "cutmx"], ["f.choices.agents.values[1]: unknown agent 'cutmx'", "'cutmix'?"]),
    ("choices.agents.values", ["policy", ["cutmix", "policy"]], ["values[1]: got 'cutmix' before 'policy'"]),
    ("choices.agents.values", ["policy", 3], ["f.choices.agents.values[1]: got 3; expected text"]),
    ("choices.pick.criterion.values", ["teacher_entropy", True], ["criterion.values[1]: got True", "quote numbers"]),
    ("choices.pick.criterion.values", ["teacher_entropy", " "], ["criterion.values[1]: got ' '"]),
    ("choices.pick.criterion.values", ["teacher_entropy", []], ["criterion.values[1]: got []"]),
    ("choices.agents.initial", "polcy", ["f.choices.agents.initial: unknown agent 'polcy'", "Did you mean 'policy'?"]),
    ("choices.agents.initial", "mixup", ["f.choices.agents.initial: got 'mixup'; expected one of policy, policy+cut"]),
    ("choices.agents.initial", None, ["f.choices.agents.initial: got none; expected one of the values"]),
    ("choices.mode.initial", "fsat", ["f.choices.mode.initial: got 'fsat'", "Did you mean 'fast'?"]),
    ("choices.agents.rolle", "teacher", ["f.choices.agents: unknown key 'rolle'", "Did you mean 'role'?"]),
    ("choices.agents.role", "techer", ["f.choices.agents.role: got 'techer'", "'teacher'"]),
    ("choices.agents.resample_probability", 2, ["f.choices.agents.resample_probability: got 2"]),
    ("choices.policy", GOOD["choices"]["mode"], ["f.choices.policy: got a key of the schedule file"]),
    ("choices.chain", GOOD["choices"]["mode"], ["f.choices.chain: got a key of the schedule file"]),
    ("scalars.agents", GOOD["scalars"]["temperature"], ["f.scalars.agents: got a key of the schedule file"]),
    ("choices.temperature", GOOD["choices"]["pick.criterion"], ["f.choices.temperature: got the name of a scalar"]),
    ("choices.temperature", GOOD["choices"]["mode"], None),  # another role's
    ("scalars.temperature.range", None, ["f.scalars.temperature.range: got none", "expected [low, high]"]),
]


@pytest.mark.parametrize("key, value, words", WRONG, ids=[f"{key}={str(value)[:40]}" for key, value, _ in WRONG])
def test_a_wrong_choice_is_told_key_value_and_rule(key, value, words):
    data = copy.deepcopy(GOOD)
    parts = key.replace("pick.criterion", "pick/criterion").split(".")
    *parents, last = (part.replace("/", ".") for part in parts)
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


def test_the_first_policy_has_initial_choices_and_a_random_one_uniform_ones():
    assert zero_policy(SPACE, Role.STUDENT).choices == {"agents": "policy", "pick.criterion": "teacher_entropy"}
    assert zero_policy(SPACE, Role.TEACHER).choices == {"mode": "slow"}
    rng = Random(5)
    drawn = Counter(random_policy(SPACE, Role.STUDENT, rng).choices["agents"] for _ in range(1500))
    assert set(drawn) == set(AGENTS.values)
    assert stats.chisquare(list(drawn.values())).pvalue > 1e-4


def test_a_choice_is_redrawn_uniformly_with_its_chance_or_stays():
    donor = Policy((), {}, {"agents": "policy+cutmix"})
    rng = Random(3)
    mutated = [explore(donor, SPACE, Role.STUDENT, rng).choices for _ in range(3000)]
    counts = Counter(choices["agents"] for choices in mutated)
    moved = 3000 * 0.25 / 3  # to each value, the old one included
    expected = {"policy": moved, "policy+cutmix": 3000 * 0.75 + moved, "randaugment+cutmix": moved}
    assert stats.chisquare([counts[value] for value in expected], list(expected.values())).pvalue > 1e-4
    missing = Counter(choices["pick.criterion"] for choices in mutated)  # starts from the initial value
    assert stats.chisquare([missing["student_entropy"], missing["teacher_entropy"]], [750, 2250]).pvalue > 1e-4
    assert donor.choices == {"agents": "policy+cutmix"}


@pytest.mark.parametrize("chance, stays", [(0.0, True), (1.0, False)])
def test_a_chance_of_0_keeps_and_of_1_always_redraws(chance, stays):
    spec, rng = replace(AGENTS, resample_probability=chance), Random(1)
    assert ({explore_choice("policy", spec, rng) for _ in range(50)} == {"policy"}) == stays


@given(st.data())
def test_choices_change_no_draw_of_bins_and_scalars(data):
    """Of one policy: choices are drawn last."""
    space = data.draw(spaces())
    role = data.draw(st.sampled_from(Role))
    donor, seed = data.draw(policies(space, role)), data.draw(st.integers(0, 2**32))
    without = replace(space, choices=())
    mutated, plain = (explore(donor, s, role, Random(seed)) for s in (space, without))
    assert (mutated.settings, mutated.scalars, plain.choices) == (plain.settings, plain.scalars, {})
    drawn, plain = (random_policy(s, role, Random(seed)) for s in (space, without))
    assert (drawn.settings, drawn.scalars) == (plain.settings, plain.scalars)
    assert all(mutated.choices[choice.name] in choice.values for choice in space.choices_of(role))
    assert donor.completed(space).choices == donor.choices


def test_a_fixed_seed_gives_what_it_gave_before_there_were_choices():
    """Written down from the code of the commit before; a lineage replayed from a log depends on it."""
    ops, scalars = {"rotate": {"range": [0, 9]}}, {"t": {"initial": 4, "range": [1, 10]}}
    plain = parse_space({"ops": ops, "scalars": scalars}, where="f")
    first = random_policy(plain, Role.STUDENT, rng := Random(11))
    assert first == Policy((OpSetting("rotate", 7, 8), OpSetting("rotate", 7, 7)), {"t": 5.57057145756044})
    second = explore(first, plain, Role.STUDENT, rng)
    assert second == Policy((OpSetting("rotate", 6, 9), OpSetting("rotate", 7, 7)), {"t": 6.684685749072528})
    assert rng.random() == 0.6539225335338404


CUTMIX = Policy(
    (OpSetting("rotate", 3, 4),),
    {"temperature": 3.2, "cutmix.alpha": 0.7},
    {"agents": "policy+cutmix", "pick.criterion": "student_entropy"},
)
SCHEDULE = Schedule(SPACE, {Role.STUDENT: (Segment(2, zero_policy(SPACE, Role.STUDENT)), Segment(3, CUTMIX))})


def test_a_schedule_file_holds_choices_and_settings_of_agents_below_agents():
    segments = schedule_to_dict(SCHEDULE)["roles"]["student"]["segments"]
    assert segments[1] == {
        "epochs": 3,
        "policy": [{"op": "rotate", "probability": 0.3, "magnitude_bin": 4}],
        "temperature": 3.2,
        "agents": {"chain": "policy+cutmix", "pick.criterion": "student_entropy", "cutmix.alpha": 0.7},
    }
    assert next(iter(segments[1]["agents"])) == "chain"
    assert schedule_from_dict(parse_yaml(schedule_text(SCHEDULE), where="f"), where="f") == SCHEDULE.firing()


def test_files_and_jobs_without_choices_are_as_before():
    policy = Policy((), {"temperature": 3.2})
    plain = parse_space({key: GOOD[key] for key in ("ops", "scalars")}, where="f")
    assert schedule_to_dict(Schedule(plain, {Role.STUDENT: (Segment(1, policy),)}))["roles"]["student"] == {
        "segments": [{"epochs": 1, "policy": [], "temperature": 3.2}]
    }
    assert policies_to_dict({Role.STUDENT: policy}, plain) == {"student": {"policy": [], "temperature": 3.2}}
    bare = schedule_from_dict(
        {
            "format": "rolekd.schedule/1",
            "space": GOOD,
            "roles": {"student": {"segments": [{"epochs": 1, "policy": []}]}},
        },
        where="f",
    )
    assert bare.policy_at(Role.STUDENT, 0) == Policy(), "an older file's segments, in a space that has choices now"


@given(st.data())
def test_policies_of_jobs_survive_plain_data(data):
    space = data.draw(spaces())
    given_policies = {role: data.draw(policies(space, role)) for role in Role}
    assert policies_from_dict(policies_to_dict(given_policies, space), space) == given_policies


SEGMENT = {"epochs": 3, "policy": [], "agents": {"chain": "policy+cutmix", "cutmix.alpha": 0.7}}
WRONG_SEGMENTS = [
    ({"agents": ["cutmix"]}, ["segments[0].agents: got ['cutmix']; expected a mapping with some of chain, pick.crit"]),
    ({"agents": {"chian": "policy"}}, ["segments[0].agents: unknown key 'chian'", "Did you mean 'chain'?"]),
    ({"agents": {"agents": "policy"}}, ["segments[0].agents: unknown key 'agents'"]),
    ({"agents": {"chain": "policy+mixup"}}, ["agents.chain: got 'policy+mixup'; expected one of policy, ", "'policy+"]),
    ({"agents": {"chain": "polcy"}}, ["segments[0].agents.chain: unknown agent 'polcy'", "Did you mean 'policy'?"]),
    ({"agents": {"chain": 3}}, ["segments[0].agents.chain: got 3"]),
    ({"agents": {"pick.criterion": "student"}}, ["agents.pick.criterion: got 'student'", "'student_entropy'?"]),
    ({"agents": {"cutmix.alpha": 5}}, ["segments[0].agents.cutmix.alpha: got 5; expected a number in [0.1, 4]"]),
    ({"agents": {"temperature": 5}}, ["segments[0].agents: unknown key 'temperature'"]),
    ({"cutmix.alpha": 1.0}, ["segments[0]: unknown key 'cutmix.alpha'", "Did you mean 'agents'?"]),
    ({"agents": {"mode": "slow"}}, ["segments[0].agents: unknown key 'mode'"]),  # of the teacher
]


@pytest.mark.parametrize("change, words", WRONG_SEGMENTS, ids=[str(change) for change, _ in WRONG_SEGMENTS])
def test_a_wrong_segment_is_told_place_value_and_rule(change, words):
    data = {
        "format": "rolekd.schedule/1",
        "space": GOOD,
        "roles": {"student": {"segments": [SEGMENT | change]}},
    }
    with pytest.raises(ScheduleError) as caught:
        schedule_from_dict(data, where="f")
    (problem,) = caught.value.problems
    for word in words:
        assert word in problem


def test_a_chain_may_stand_as_a_list_in_a_schedule():
    data = schedule_to_dict(SCHEDULE)
    data["roles"]["student"]["segments"][1]["agents"]["chain"] = ["policy", "cutmix"]
    assert schedule_from_dict(data, where="f") == SCHEDULE.firing()


def test_changes_of_a_schedule_keep_choices():
    first, second = (segment.policy.choices for segment in SCHEDULE.roles[Role.STUDENT])
    assert SCHEDULE.stretched(10).policy_at(Role.STUDENT, 9).choices == second
    assert SCHEDULE.last().policy_at(Role.STUDENT, 0).choices == second
    assert SCHEDULE.firing().policy_at(Role.STUDENT, 0).choices == first
    for epoch, now in ((0, first), (4, second)):
        drawn = SCHEDULE.flatten().policies_at(Role.STUDENT, epoch)
        assert [policy.choices for _, policy in drawn] == [now, now], "choices follow the epoch"
        assert len({policy.settings for _, policy in drawn}) == 2, "ops do not"
    only_choices = Schedule(SPACE, {Role.STUDENT: (Segment(1, CUTMIX), Segment(1, replace(CUTMIX, choices=first)))})
    assert len(only_choices.firing().roles[Role.STUDENT]) == 2, "another chain is another policy"


def test_a_search_over_chains_replays_and_its_lineage_is_a_schedule():
    life = live_through(made_rule(space=SPACE), 3)
    again = Population.replay(json.loads(json.dumps(life.records)))
    assert again.jobs == life.population.jobs
    member, generation = life.population.best()
    schedule = schedule_of(life.population, member, generation)
    assert schedule_from_dict(parse_yaml(schedule_text(schedule), where="f"), where="f") == schedule.firing()
    carriers = ancestors(life.population, member, generation)
    for job in (life.population.jobs[carrier, g] for g, carrier in enumerate(carriers)):
        assert schedule.policy_at(Role.STUDENT, job.start_epoch).choices == job.policies[Role.STUDENT].choices
    chains = {(p.before[Role.STUDENT].choices["agents"], p.after[Role.STUDENT].choices["agents"]) for p in life.found}
    assert any(before != after for before, after in chains)


def test_one_row_may_evolve_for_both_roles():
    """Each role has a value of its own, and the space comes back from its YAML form."""
    rows = {
        "scalars": {"cutmix.alpha": {"role": ["teacher", "student"], "initial": 1.0, "range": [0.1, 2]}},
        "choices": {"agents": {"role": ["teacher", "student"], "initial": "policy", "values": ["policy", "cutmix"]}},
    }
    space = parse_space({"ops": {"invert": {}}, **rows}, where="space")
    assert [spec.role for spec in (*space.scalars, *space.choices)] == [Role.TEACHER, Role.STUDENT] * 2
    assert parse_space(space.to_dict(), where="again") == replace(space, name="inline")
    for role in Role:
        assert zero_policy(space, role).choices == {"agents": "policy"}
        assert zero_policy(space, role).scalars == {"cutmix.alpha": 1.0}


@pytest.mark.parametrize("role", [[], ["student", "student"], ["student", "pupil"], 3])
def test_roles_that_are_none_are_refused(role):
    with pytest.raises(SearchSpaceError, match=r"choices\.agents\.role: got "):
        row = {"role": role, "initial": "policy", "values": ["policy", "cutmix"]}
        parse_space({"ops": {"invert": {}}, "choices": {"agents": row}}, where="space")
