"""Explorers by name: the factor rule by a table and its chances; policies as points; proposals in the rule."""

import json
from collections import Counter
from dataclasses import replace
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_searches import BOTH, SPACE, hashed, init_record, live_through, made_rule, new_life, open_jobs
from policy_strategies import policies, spaces
from population_helpers import play_generation, rules
from scipy import stats

from rolekd_ray.config.settings import SearchSettings
from rolekd_ray.errors import RunDirectoryError
from rolekd_ray.policy.explore import explore
from rolekd_ray.policy.explorers import EXPLORERS, PROPOSED, SAMPLERS, explore_by_factor
from rolekd_ray.policy.jobs import policies_to_dict
from rolekd_ray.policy.points import check_policies, dimensions, point_of, policies_at
from rolekd_ray.policy.policy import OpSetting, Policy, random_policy
from rolekd_ray.policy.population import Population, Rule
from rolekd_ray.policy.space import load_space
from rolekd_ray.roles import Role
from rolekd_ray.search.log import fold

seeds = st.integers(0, 2**31)
PBA = load_space("cifar10_pba")


# ---- names


def test_settings_offer_what_there_is():
    fields = SearchSettings.model_fields
    assert get_args(fields["explorer"].annotation) == (*EXPLORERS, *PROPOSED)
    assert get_args(fields["optuna_sampler"].annotation) == SAMPLERS
    assert EXPLORERS["pba"] is explore and SearchSettings().explorer == Rule.__dataclass_fields__["explorer"].default


@pytest.mark.parametrize(
    "key, name, hint", [("explorer", "optun", "Did you mean 'optuna'"), ("optuna_sampler", "tpee", "'tpe'")]
)
def test_a_rule_knows_its_names(key, name, hint):
    with pytest.raises(ValueError, match=f"unknown {key} '{name}'.*{hint}"):
        made_rule(**{key: name})


def test_rules_of_logs_from_before_explorers_are_pbas():
    data = made_rule().to_dict()
    for key in ("explorer", "optuna_sampler", "min_lineages", "first_policies"):
        del data[key]
    assert Rule.from_dict(json.loads(json.dumps(data))) == made_rule()


# ---- factor

# old bin -> (times 0.8, times 1.2), each rounded away from the old, on a grid of 11
STEPS = {0: (0, 1), 1: (0, 2), 2: (1, 3), 3: (2, 4), 4: (3, 5), 5: (4, 6), 6: (4, 8), 7: (5, 9), 8: (6, 10),
         9: (7, 10), 10: (8, 10)}  # fmt: skip


def factored(bin: int, rng: Random, resample: float) -> int:
    """One probability bin of a policy of PBA's space, mutated."""
    policy = Policy((OpSetting("rotate", bin, 0),))
    return explore_by_factor(policy, PBA, Role.STUDENT, rng, resample_probability=resample).settings[0].probability_bin


@pytest.mark.parametrize("bin", STEPS)
def test_factor_steps_are_those_of_the_table_half_up_half_down(bin):
    found = Counter(factored(bin, Random(seed), 0.0) for seed in range(400))
    assert set(found) == set(STEPS[bin])
    assert stats.binomtest(found[STEPS[bin][1]], 400).pvalue > 1e-4
    assert bin in (0, 10) or bin not in found, "it moves"


def test_factor_redraws_with_the_chance_asked_for():
    found = Counter(factored(10, Random(seed), 0.3) for seed in range(2000))
    chances = [0.3 / 11] * 11
    chances[8] += 0.35
    chances[10] += 0.35
    assert stats.chisquare([found[b] for b in range(11)], [2000 * c for c in chances]).pvalue > 1e-4


@given(spaces(), st.data(), seeds)
def test_factor_stays_in_the_space_and_changes_scalars_and_choices_as_pba_does(space, data, seed):
    role = data.draw(st.sampled_from(Role))
    policy = data.draw(policies(space, role))
    after = explore_by_factor(policy, space, role, Random(seed), resample_probability=0.2)
    check_policies({role: after}, space, (role,))
    assert explore_by_factor(policy, space, role, Random(seed), resample_probability=0.2) == after
    frozen = explore_by_factor(policy, replace(space, scalars=(), choices=()), role, Random(seed))
    assert frozen.settings == after.settings, "bins are drawn first"


def test_a_search_by_factor_differs_from_pbas_in_its_mutations_alone():
    lives = [live_through(made_rule(explorer=name), 0) for name in ("pba", "factor")]
    assert [(f.generation, f.recipient, f.donor) for f in lives[0].found] == [
        (f.generation, f.recipient, f.donor) for f in lives[1].found
    ]
    assert all(a.after != b.after for a, b in zip(lives[0].found, lives[1].found))
    for found in lives[1].found:
        donor = lives[1].population.jobs[found.donor, found.generation].policies
        moved = [
            (old.probability_bin, new.probability_bin)
            for role in BOTH
            for old, new in zip(donor[role].settings, found.after[role].settings)
        ]
        assert sum(new in STEPS[old] for old, new in moved) >= len(moved) / 2, "most are not redrawn"


# ---- points


@given(spaces(), seeds, st.sampled_from([BOTH, (Role.STUDENT,), (Role.TEACHER,)]))
def test_points_say_all_that_has_an_effect(space, seed, roles):
    given = {role: random_policy(space, role, Random(seed)) for role in roles}
    point = point_of(given, space)
    where = dimensions(space, roles)
    assert [dimension.name for dimension in where] == list(point)
    again = policies_at(point, space, roles)
    check_policies(again, space, roles)
    for role in roles:
        assert (again[role].scalars, again[role].choices) == (given[role].scalars, given[role].choices)
        for old, new in zip(given[role].settings, again[role].settings, strict=True):
            assert old.probability_bin == new.probability_bin
            assert new.magnitude_bin == (0 if space.op(old.op).magnitudes is None else old.magnitude_bin)
    assert point_of(again, space) == point


@given(spaces(), st.floats(0, 1, exclude_max=True))
def test_every_share_of_every_dimension_lies_in_the_space(space, share):
    point = {dimension.name: dimension.at(share) for dimension in dimensions(space, BOTH)}
    check_policies(policies_at(point, space, BOTH), space, BOTH)


def test_shares_are_spread_evenly():
    where = {dimension.name: dimension for dimension in dimensions(SPACE, BOTH)}
    bins = Counter(where["student/0/rotate/probability"].at(i / 1100) for i in range(1100))
    assert bins == dict.fromkeys(range(11), 100)
    assert where["student/temperature"].at(0.5) == pytest.approx(10**0.5)  # 1 to 10, log
    assert "student/1/invert/magnitude" not in where, "it would change no view"


# ---- proposals in the rule


def proposal(population: Population, member: int) -> dict:
    """A record that fits, with policies that depend on member and generation alone."""
    generation, _ = population.pending[member]
    rule = population.rule
    drawn = {role: random_policy(rule.space, role, Random(f"{member}/{generation}/{role}")) for role in rule.roles}
    policies = policies_to_dict(drawn, rule.space)
    return {"kind": "propose", "member": member, "generation": generation, "policies": policies}


def test_who_copied_waits_for_a_proposal_and_the_others_do_not():
    life = new_life(made_rule(explorer="optuna"))
    assert not play_generation(life, {m: m / 8 for m in range(8)}), "nothing is complete yet"
    population = life.population
    assert population.pending.keys() == {0, 1} and {donor for _, donor in population.pending.values()} <= {6, 7}
    assert [job.member for job in open_jobs(population)] == [2, 3, 4, 5, 6, 7]
    assert population.ask(0) is None and not population.finished
    for member in (2, 3, 4, 5, 6, 7):
        life.score(population.ask(member), hashed(member))
    assert not open_jobs(population) and not population.complete(1)
    donor = population.pending[1][1]
    record = proposal(population, 1)
    (found,) = life.tell(record)
    assert (found.generation, found.recipient, found.donor) == (0, 1, donor)
    assert policies_to_dict(population.ask(1).policies, SPACE) == record["policies"]
    assert population.ask(1).source == f"{donor:03d}-0000" and population.pending.keys() == {0}


def live_with_proposals(rule, seed, **options):
    """As `live_through`; proposals come at once, as the ledger makes them, or some records later."""
    life, rng = new_life(rule), Random(seed)
    drop, fail, late = (options.get(key, 0.0) for key in ("drop", "fail", "late"))
    while (jobs := open_jobs(life.population)) or life.population.pending:
        if life.population.pending and (not jobs or rng.random() >= late):
            life.tell(proposal(life.population, rng.choice(sorted(life.population.pending))))
        elif rng.random() < drop:
            life.tell({"kind": "drop", "member": rng.choice(sorted(life.population.live)), "reason": "drawn"})
        elif rng.random() < fail:
            life.fail(rng.choice(jobs))
        else:
            job = rng.choice(jobs)
            life.score(job, hashed(seed, job.state))
    return life


@given(rules, seeds, st.sampled_from([0.0, 0.05]), st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 0.7]))
def test_nobody_waits_for_ever_and_any_prefix_of_the_log_is_the_past(rule, seed, drop, fail, late):
    life = live_with_proposals(replace(rule, explorer="optuna"), seed, drop=drop, fail=fail, late=late)
    population = life.population
    assert population.finished
    for member in population.live:
        assert population.ended(member, population.generations - 1)
    records = json.loads(json.dumps(life.records))
    for length in {1, len(records), 1 + seed % len(records)}:
        again = Population.replay(records[:length])
        assert (again.jobs, again.newest, again.live, again.ends) == life.seen[length - 1]
    for found in life.found:
        assert population.jobs[found.recipient, found.generation + 1].donor == found.donor != found.recipient


@given(rules, seeds)
def test_whom_somebody_copies_does_not_depend_on_who_makes_the_policies(rule, seed):
    """With scores that do not depend on policies, and in synchronous searches, which have one order of decisions."""
    rule = replace(rule, synchronous=True)
    mutated = live_through(rule, seed, score=lambda job: hashed(seed, job.state))
    proposed = live_with_proposals(replace(rule, explorer="optuna"), seed)
    assert {key: job.donor for key, job in mutated.population.jobs.items()} == {
        key: job.donor for key, job in proposed.population.jobs.items()
    }
    assert sorted((f.generation, f.recipient) for f in mutated.found) == sorted(
        (f.generation, f.recipient) for f in proposed.found
    )


def test_a_dropped_member_waits_for_nothing():
    life = new_life(made_rule(explorer="optuna"))
    play_generation(life, {m: m / 8 for m in range(8)})
    for member in (0, 1):
        life.tell({"kind": "drop", "member": member, "reason": "fire"})
    assert not life.population.pending
    play_generation(life, {m: m / 8 for m in range(2, 8)})
    assert life.population.pending, "the others decide without them"


BAD = {
    "another member": (lambda r: r | {"member": 5}, "member 5 waits for no proposal after generation 0"),
    "another generation": (lambda r: r | {"generation": 1}, "waits for no proposal after generation 1"),
    "no such member": (lambda r: r | {"member": 99}, "member 99 waits for no proposal"),
    "a role less": (lambda r: with_policies(r, teacher=None), "roles: got student; expected teacher, student"),
    "a slot less": (lambda r: with_policies(r, student=lambda p: p["policy"].pop()), "student.policy: got other ops"),
    "another op": (
        lambda r: with_policies(r, student=lambda p: p["policy"][0].update(op="posterize")),
        "unknown op 'posterize'",
    ),
    "off the grid": (
        lambda r: with_policies(r, student=lambda p: p["policy"][0].update(magnitude_bin=10)),
        r"magnitude_bin: got 10; expected a whole number in 0\.\.9",
    ),
    "out of range": (lambda r: with_policies(r, student=lambda p: p.update(temperature=11)), r"temperature: got 11"),
    "no number": (lambda r: with_policies(r, student=lambda p: p.update(temperature="4")), "temperature: got '4'"),
    "a scalar less": (lambda r: with_policies(r, student=lambda p: p.pop("temperature")), "expected .*temperature"),
    "no policies": (lambda r: {k: v for k, v in r.items() if k != "policies"}, "does not fit"),
    "a list": (lambda r: r | {"policies": []}, "does not fit"),
}


def with_policies(record: dict, **changes) -> dict:
    """A copy of a record with a role's policies changed in place, or without the role."""
    record = json.loads(json.dumps(record))
    for role, change in changes.items():
        if change is None:
            del record["policies"][role]
        else:
            change(record["policies"][role])
    return record


@pytest.mark.parametrize("name", BAD)
def test_a_proposal_that_does_not_fit_is_refused_and_says_why(tmp_path, name):
    change, message = BAD[name]
    life = new_life(made_rule(explorer="optuna"))
    play_generation(life, {m: m / 8 for m in range(8)})
    good = proposal(life.population, 1)
    with pytest.raises(RunDirectoryError, match="a record does not fit those before it") as raised:
        fold(life.population, change(good), tmp_path)
    with pytest.raises(RunDirectoryError, match=message):
        raise raised.value
    assert life.population.pending.keys() == {0, 1}, "nothing changed"
    fold(life.population, good, tmp_path)
    with pytest.raises(RunDirectoryError, match="waits for no proposal"):
        fold(life.population, good, tmp_path)


def test_who_mutates_waits_for_no_proposal(tmp_path):
    life = new_life(made_rule())
    play_generation(life, {m: m / 8 for m in range(8)})
    record = {"kind": "propose", "member": 0, "generation": 0, "policies": {}}
    with pytest.raises(RunDirectoryError, match="member 0 waits for no proposal"):
        fold(life.population, record, tmp_path)


# ---- first policies


def test_first_policies_stand_in_the_log():
    first = tuple({role: random_policy(SPACE, role, Random(f"{m}{role}")) for role in BOTH} for m in range(8))
    rule = made_rule(first_policies=first, initial="sobol")
    record = json.loads(json.dumps(init_record(rule)))
    population = Population.replay([record])
    assert population.rule == rule
    assert [population.ask(member).policies for member in range(8)] == list(first)


def test_first_policies_must_be_as_many_as_members_and_fit():
    first = [{role: random_policy(SPACE, role, Random(0)) for role in BOTH} for _ in range(8)]
    with pytest.raises(ValueError, match="first_policies: got 7; expected 8"):
        made_rule(first_policies=tuple(first[:7]))
    first[3] = {Role.STUDENT: Policy()}
    with pytest.raises(ValueError, match="roles: got student; expected teacher, student"):
        made_rule(first_policies=tuple(first))
