"""First policies: Sobol's evenness, schedules and runs read back, what cannot be begun with, one real search."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from cli_helpers import TINY, options, rolekd
from made_searches import BOTH, SPACE, hashed, made_rule, play

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.config.settings import SearchSettings
from rolekd_ray.errors import ConfigError, InputError, RunDirectoryError, ScheduleError, SearchSpaceError
from rolekd_ray.files import write_atomically
from rolekd_ray.policy.evolvable import ChoiceSpec
from rolekd_ray.policy.points import check_policies
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule, Segment, load_schedule, schedule_text
from rolekd_ray.policy.space import OpSpec, load_space
from rolekd_ray.roles import Role
from rolekd_ray.search.initial import best_of_run, first_policies, sobol_policies, spread_over
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_log, read_population
from rolekd_ray.search.population_search import rule_of
from rolekd_ray.search.preflight import check_search

SPACE_TEXT = SPACE.to_dict()


def made_settings(space=SPACE, **search) -> Settings:
    """Settings whose search begins as asked."""
    return Settings(space=space.to_dict(), search=SearchSettings(**{"population_size": 6, **search}))


def policy(bin: int, temperature: float = 4.0) -> Policy:
    """All slots at one bin."""
    return Policy(tuple(OpSetting(op, bin, bin) for op in SPACE.slots()), {"temperature": temperature})


# ---- zero, random, sobol


def test_what_the_rule_says_alone_stands_nowhere_else():
    for kind in ("zero", "random"):
        assert first_policies(made_settings(initial_policies=kind), BOTH) is None


@pytest.mark.parametrize("space", [SPACE, load_space("cifar10_pba")], ids=["small", "pba"])
@pytest.mark.parametrize("count, roles", [(2, BOTH), (7, (Role.STUDENT,)), (16, BOTH), (17, (Role.TEACHER,))])
def test_sobol_policies_lie_in_the_space(space, count, roles):
    found = sobol_policies(space, roles, count, 0)
    assert len(found) == count
    for policies in found:
        check_policies(policies, space, roles)


def test_sobol_policies_cover_each_grid_more_evenly_than_chance():
    """Of 16 points, each half of every range holds 8; random ones rarely do. Scrambled, and by the seed."""
    space = replace(SPACE, choices=(ChoiceSpec("agents", Role.STUDENT, "policy", ("policy", "none")),))
    found = sobol_policies(space, BOTH, 16, 3)
    assert Counter(p[Role.STUDENT].choices["agents"] for p in found) == {"policy": 8, "none": 8}
    assert sum(p[Role.STUDENT].scalars["temperature"] < 10**0.5 for p in found) == 8
    for role in BOTH:
        for place, op in enumerate(space.slots()):
            settings = [p[role].settings[place] for p in found]
            if op != "invert":
                assert sum(s.magnitude_bin < 5 for s in settings) == 8
            assert 6 <= sum(s.probability_bin < 5.5 for s in settings) <= 10  # 11 bins: the middle one is shared
    assert sobol_policies(space, BOTH, 16, 3) == found != sobol_policies(space, BOTH, 16, 4)


# ---- a schedule


def two_roles() -> Schedule:
    """Ten epochs; the bins tell the segments apart."""
    student = (Segment(6, policy(0)), Segment(2, policy(3, 2.0)), Segment(2, policy(9, 8.0)))
    teacher = (Segment(5, Policy(policy(1).settings)), Segment(5, Policy(policy(7).settings)))
    return Schedule(SPACE, {Role.TEACHER: teacher, Role.STUDENT: student})


def test_member_0_has_a_schedules_last_policies_and_the_others_those_of_epochs_spread_evenly(tmp_path):
    write_atomically(tmp_path / "found.yaml", schedule_text(two_roles()))
    found = first_policies(made_settings(initial_policies="schedule", initial_from=tmp_path / "found.yaml"), BOTH)
    # epochs 9; 0, 2, 4, 6, 8
    assert [p[Role.STUDENT].settings[0].probability_bin for p in found] == [9, 0, 0, 0, 3, 9]
    assert [p[Role.TEACHER].settings[0].probability_bin for p in found] == [7, 1, 1, 1, 7, 7]
    assert [p[Role.STUDENT].scalars["temperature"] for p in found] == [8.0, 4.0, 4.0, 4.0, 2.0, 8.0]
    for policies in found:
        check_policies(policies, SPACE, BOTH)  # a file leaves out what cannot fire, and scalars may be missing


def test_a_schedule_must_hold_the_roles_that_are_searched(tmp_path):
    with pytest.raises(ScheduleError, match=r"x: roles: got student; expected teacher, too"):
        spread_over(two_roles().only(Role.STUDENT), BOTH, 4, tmp_path / "x")
    assert len(spread_over(two_roles(), (Role.STUDENT,), 4, tmp_path)) == 4


OTHER_SPACES = {
    "ops.rotate": lambda: replace(SPACE, ops=(replace(SPACE.ops[0], signed=False), *SPACE.ops[1:])),
    "ops.equalize": lambda: replace(SPACE, ops=(*SPACE.ops, OpSpec("equalize"))),
    "the order of ops": lambda: replace(SPACE, ops=SPACE.ops[::-1]),
    "copies": lambda: replace(SPACE, copies=3),
    "counts": lambda: replace(SPACE, counts=(0.5, 0.5)),
    "scalars.temperature": lambda: replace(SPACE, scalars=(replace(SPACE.scalars[0], high=9.0), SPACE.scalars[1])),
    "scalars.weight_decay": lambda: replace(SPACE, scalars=SPACE.scalars[:1]),
    "choices.agents": lambda: replace(SPACE, choices=(ChoiceSpec("agents", Role.STUDENT, "none", ("none", "policy")),)),
}


@pytest.mark.parametrize("what", OTHER_SPACES)
def test_another_search_space_is_refused_and_what_differs_is_named(tmp_path, what):
    write_atomically(tmp_path / "found.yaml", schedule_text(two_roles()))
    ours = made_settings(OTHER_SPACES[what](), initial_policies="schedule", initial_from=tmp_path / "found.yaml")
    with pytest.raises(SearchSpaceError, match=f"found.yaml: space: {what} differ.*expected this run's space"):
        first_policies(ours, BOTH)


def test_a_space_under_another_name_is_the_same(tmp_path):
    write_atomically(tmp_path / "found.yaml", schedule_text(two_roles()))
    ours = made_settings(replace(SPACE, name="mine"), initial_policies="schedule", initial_from=tmp_path / "found.yaml")
    assert len(first_policies(ours, BOTH)) == 6


def test_of_many_differences_some_are_named(tmp_path):
    write_atomically(tmp_path / "found.yaml", schedule_text(two_roles()))
    ours = made_settings(load_space("cifar10_pba"), initial_policies="schedule", initial_from=tmp_path / "found.yaml")
    with pytest.raises(SearchSpaceError, match=r"space: \S+, \S+, \S+, \S+, \S+, \S+, and \d+ more differ"):
        first_policies(ours, BOTH)


# ---- a run


def made_run(folder, intervals: int | None = None, **rule) -> Population:
    with Ledger(folder, made_rule(**{"population_size": 8, **rule})) as ledger:
        play(ledger, intervals)
    return ledger.population


def ranked(population: Population, generation: int) -> list[int]:
    return sorted(range(8), key=lambda m: -hashed(m, generation))


def test_a_run_gives_its_best_members_newest_policies_in_order(tmp_path):
    population = made_run(tmp_path)
    found = first_policies(made_settings(initial_policies="run", initial_from=tmp_path), BOTH)
    assert list(found) == [population.jobs[member, 3].policies for member in ranked(population, 3)][:6]


def test_of_a_run_under_way_the_newest_generation_that_ended_for_all_counts(tmp_path):
    population = made_run(tmp_path, 8 + 8 + 3)
    found = first_policies(made_settings(initial_policies="run", initial_from=tmp_path), BOTH)
    assert list(found) == [population.jobs[member, 1].policies for member in ranked(population, 1)][:6]


@pytest.mark.parametrize("explorer", ["pba", "factor", "optuna"])
def test_more_members_than_a_run_had_get_mutated_copies_in_turn(tmp_path, explorer):
    population = made_run(tmp_path)
    ours = made_settings(initial_policies="run", initial_from=tmp_path, population_size=19, explorer=explorer)
    found = first_policies(ours, BOTH)
    best = [population.jobs[member, 3].policies for member in ranked(population, 3)]
    assert list(found[:8]) == best and len(found) == 19
    for member, policies in enumerate(found):
        check_policies(policies, SPACE, BOTH)
        assert (policies in best) == (member < 8)
    kept = ours.model_copy(update={"search": ours.search.model_copy(update={"resample_probability": 0.0})})
    for member, policies in enumerate(first_policies(kept, BOTH)[8:], 8):
        for old, new in zip(best[member % 8][Role.STUDENT].settings, policies[Role.STUDENT].settings):
            assert abs(old.probability_bin - new.probability_bin) <= 3, "a mutation of the member whose turn it is"
    assert first_policies(ours, BOTH) == found


def test_roles_that_were_searched_one_after_the_other_go_together_by_rank(tmp_path):
    teacher = made_run(tmp_path / "teacher", roles=(Role.TEACHER,), seed=1)
    student = made_run(tmp_path, roles=(Role.STUDENT,), seed=2, population_size=5)
    found = best_of_run(tmp_path, SPACE, BOTH)
    assert len(found) == 5
    best = [m for m in ranked(student, 3) if m < 5]
    for rank, policies in enumerate(found):
        assert policies[Role.TEACHER] == teacher.jobs[ranked(teacher, 3)[rank], 3].policies[Role.TEACHER]
        assert policies[Role.STUDENT] == student.jobs[best[rank], 3].policies[Role.STUDENT]
    assert [set(p) for p in best_of_run(tmp_path, SPACE, (Role.STUDENT,))] == [{Role.STUDENT}] * 5


def test_runs_that_cannot_be_begun_with(tmp_path):
    with pytest.raises(RunDirectoryError, match="nothing: no log of a search; expected a run directory"):
        best_of_run(tmp_path / "nothing", SPACE, BOTH)
    made_run(tmp_path / "new", 0)
    with pytest.raises(RunDirectoryError, match="new: no member has a score for the roles teacher and student"):
        best_of_run(tmp_path / "new", SPACE, BOTH)
    made_run(tmp_path / "students", 9, roles=(Role.STUDENT,))
    with pytest.raises(RunDirectoryError, match="no member has a score for the role teacher; expected at least one"):
        best_of_run(tmp_path / "students", SPACE, BOTH)
    with pytest.raises(SearchSpaceError, match="students: space: copies differs; expected this run's space"):
        best_of_run(tmp_path / "students", replace(SPACE, copies=3), (Role.STUDENT,))


# ---- settings, and a search


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["search.initial_policies=run"], "search.initial_from: got None for initial_policies: run; expected a place"),
        (["search.initial_from=x"], "search.initial_from: got x for initial_policies: .*; expected a place"),
        (["search.min_lineages=9"], "search.min_lineages: got 9; expected at most 8, the population_size"),
        (["search.min_lineages=0"], "search.min_lineages: got 0"),
        (["search.explorer=optun"], "search.explorer: got 'optun'.*Did you mean 'optuna'"),
        (["search.initial_policies=sobl"], "Did you mean 'sobol'"),
    ],
)
def test_wrong_settings_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_settings("quickstart", overrides)


def test_a_relative_place_is_kept_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = load_settings("quickstart", ["search.initial_policies=run", "search.initial_from=runs/a"])
    assert read.search.initial_from == tmp_path / "runs" / "a"


def test_the_rule_takes_what_the_settings_say():
    search = {"explorer": "optuna", "optuna_sampler": "gp", "min_lineages": 3, "initial_policies": "sobol"}
    rule = rule_of(made_settings(**search), BOTH)
    assert (rule.explorer, rule.optuna_sampler, rule.min_lineages, rule.initial) == ("optuna", "gp", 3, "sobol")
    assert len(rule.first_policies) == 6
    assert rule_of(made_settings(**search), BOTH, new=False).first_policies is None, "an older search keeps its own"


def test_every_search_of_a_run_is_checked_before_anything_is_written(tmp_path):
    """The student's comes an hour after the teacher's."""
    write_atomically(tmp_path / "found.yaml", schedule_text(two_roles().only(Role.TEACHER)))
    begin = {"initial_policies": "schedule", "initial_from": tmp_path / "found.yaml"}
    with pytest.raises(ScheduleError, match="expected student, too"):
        check_search(made_settings(**begin))
    with pytest.raises(InputError):
        check_search(made_settings(initial_policies="schedule", initial_from=tmp_path / "missing.yaml"))


def test_a_real_search_by_optuna_and_one_that_begins_where_it_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = options({**TINY, "search.protocol": "coevolve", "search.epochs": 3, "search.initial_policies": "sobol"})
    first = rolekd("search", "--local", "--name", "a", *tiny, "--set", "search.explorer=optuna")
    assert first.code == 0, first.err
    assert "takes what was proposed" in first.err and "2 of 2 lineages alive" in first.err
    kinds = Counter(record["kind"] for record in read_log(tmp_path / "runs" / "a"))
    assert kinds == {"init": 1, "score": 6, "propose": 2}
    ended = read_population(tmp_path / "runs" / "a")
    best = load_schedule(tmp_path / "runs" / "a" / "best" / "schedule.yaml")
    tiny = options({**TINY, "search.protocol": "coevolve", "search.epochs": 1})
    for name, place in {"b": "runs/a", "c": "runs/a/best/schedule.yaml"}.items():
        again = rolekd("search", "--local", "--name", name, *tiny, "--from", place)
        assert again.code == 0, again.err
        begun = read_population(tmp_path / "runs" / name).jobs[0, 0].policies
        settings = yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text())["search"]
        assert settings["initial_from"] == str(tmp_path / place)
        for role in BOTH:
            last = ended.jobs[*ended.best()].policies[role]
            assert Counter(begun[role].firing()) == Counter(last.firing())  # a file may move copies of an op
            assert Counter(begun[role].firing()) == Counter(best.roles[role][-1].policy.firing())
            assert begun[role].scalars == last.scalars
    init = json.loads((tmp_path / "runs" / "b" / "log.jsonl").read_text().splitlines()[0])
    assert len(init["rule"]["first_policies"]) == 2 and init["rule"]["initial"] == "run"
