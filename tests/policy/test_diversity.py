"""Lineages: how many are left, against a walk through the past; the floor; what became of the published search's."""

import hashlib
import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import BOTH, hashed, live_through, made_rule, new_life, open_jobs
from population_helpers import play_generation, rules

from rolekd_ray.policy.jobs import policies_to_dict
from rolekd_ray.policy.lineage import ancestors, effective_lineages
from rolekd_ray.policy.policy import random_policy
from rolekd_ray.policy.population import Population

seeds = st.integers(0, 2**31)


def digest(life) -> str:
    """Of every job and every perturbation."""
    things = [*life.found, *(job for _, job in sorted(life.population.jobs.items()))]
    space = life.population.rule.space
    lines = [json.dumps(thing.to_dict(space), sort_keys=True) for thing in things]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "synchronous, initial, expected",
    [
        (True, "zero", "4f2c92a6ade1bcd0"),
        (True, "random", "63c78ca7f3f58c16"),
        (False, "zero", "e624981467dd448f"),
        (False, "random", "646fec15b8eb98a4"),
    ],
)
def test_without_a_floor_searches_are_what_they_were_before_there_was_one(synchronous, initial, expected):
    """Digests of commit 551300c, the last without floors and explorers."""
    rule = made_rule(synchronous=synchronous, initial=initial, epochs=30, population_size=12)
    for same in (rule, replace(rule, min_lineages=1, explorer="pba")):
        assert digest(live_through(same, 3, drop_chance=0.01, fail_chance=0.05, extends=[40])) == expected


def lineages_by_walking(population: Population) -> int:
    """From whom the live members' newest intervals descend; who failed and waits has no descendant."""
    going_on = [
        m
        for m in population.live
        if m not in population.failed.get(population.newest[m], ()) or m in population.pending
    ]
    places = [population.pending.get(m, (population.newest[m], m)) for m in going_on]
    return len({ancestors(population, member, generation)[0] for generation, member in places})


def live(rule, seed, *, drop=0.0, fail=0.0):
    """Live through a search; yields the kind of each record and how many lineages were left before and after it."""
    life, rng = new_life(rule), Random(seed)
    population = life.population
    while (jobs := open_jobs(population)) or population.pending:
        before = population.lineages
        if population.pending:
            member = rng.choice(sorted(population.pending))
            drawn = {role: random_policy(rule.space, role, rng) for role in rule.roles}
            record = {"member": member, "generation": population.pending[member][0]}
            life.tell({"kind": "propose", "policies": policies_to_dict(drawn, rule.space)} | record)
        elif rng.random() < drop:
            life.tell({"kind": "drop", "member": rng.choice(sorted(population.live)), "reason": "drawn"})
        elif rng.random() < fail:
            life.fail(rng.choice(jobs))
        else:
            job = rng.choice(jobs)
            life.score(job, hashed(seed, job.state))
        yield life, life.records[-1]["kind"], before, population.lineages


@settings(max_examples=100)
@given(rules, seeds, st.integers(1, 12), st.booleans(), st.sampled_from([0.0, 0.05]), st.sampled_from([0.0, 0.2]))
def test_lineages_never_fall_below_the_floor_but_by_drops_and_failures(rule, seed, floor, proposed, drop, fail):
    floor = min(floor, rule.population_size)
    rule = replace(rule, min_lineages=floor, explorer="optuna" if proposed else "pba", epochs=max(rule.epochs, 8))
    life = None
    for life, kind, before, after in live(rule, seed, drop=drop, fail=fail):
        assert after == lineages_by_walking(life.population)
        assert after >= min(floor, before) or kind in ("drop", "fail")
        if not drop and not fail:
            assert after >= floor
    assert life is not None and life.population.finished


@given(rules, seeds)
def test_with_as_many_lineages_as_members_nobody_copies(rule, seed):
    rule = replace(rule, min_lineages=rule.population_size)
    life = live_through(rule, seed)
    assert not life.found and life.population.lineages == rule.population_size
    for (member, generation), job in life.population.jobs.items():
        assert job.donor == (member if generation else None)
        assert job.policies == life.population.jobs[member, 0].policies


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("floor", [2, 4])
def test_the_floor_stops_what_it_must_and_no_more(synchronous, floor):
    """Without it these searches end in fewer lineages; with it in exactly so many, and members still copy."""
    rule = made_rule(synchronous=synchronous, epochs=90, population_size=8, seed=1, quantile=0.5)
    lives = [live_through(replace(rule, min_lineages=least), 1) for least in (1, floor)]
    free, held = (life.population.lineages for life in lives)
    assert free < floor == held
    copies = [len(life.found) for life in lives]
    assert copies[1] > copies[0] / 4


def test_who_must_not_end_its_line_goes_on_with_its_own():
    life = new_life(made_rule(min_lineages=8))
    play_generation(life, {m: m / 8 for m in range(8)})
    job = life.population.ask(0)
    assert (job.donor, job.generation) == (0, 1) and job.policies == life.population.jobs[0, 0].policies


def test_one_lineage_may_end_where_one_is_to_spare():
    life = new_life(made_rule(min_lineages=7))
    (found,) = play_generation(life, {m: m / 8 for m in range(8)})
    assert found.recipient == 0 and life.population.lineages == 7
    assert life.population.ask(1).donor == 1, "the second worst would have been the next to copy"


def test_who_failed_copies_whatever_the_floor():
    life = new_life(made_rule(min_lineages=8, population_size=8))
    life.fail(life.population.ask(3))
    assert life.population.lineages == 7, "it has nothing to go on with"
    play_generation(life, {m: m / 8 for m in range(8) if m != 3})
    assert life.population.ask(3).donor != 3 and life.population.lineages == 7


def test_effective_lineages_of_a_generation_are_those_of_its_members():
    life = live_through(made_rule(epochs=30), 0)
    counts = [effective_lineages(life.population, g) for g in range(life.population.generations)]
    assert counts[0] == 8 and counts == sorted(counts, reverse=True) and counts[-1] == life.population.lineages < 8
    assert life.population.rule.roles == BOTH


def test_the_published_search_soon_had_one_lineage(shared_data):
    """Role-kd's search, 16 members, 279 exploits: all that followed descends from member 2's beginning."""
    log = shared_data / "published" / "role_kd_cifar100_resnet18_2bit" / "pbt_global.txt"
    founders = {str(member): member for member in range(16)}
    left = {}  # lineages -> (exploits, epoch) when there were first so few
    for number, line in enumerate(log.read_text().splitlines(), 1):
        recipient, donor, _, epoch, *_ = json.loads(line)
        founders[recipient] = founders[donor]
        left.setdefault(len(set(founders.values())), (number, epoch))
    assert number == 279
    assert left[8] == (10, 21) and left[4] == (14, 21) and left[2] == (22, 27) and left[1] == (23, 27)
    assert set(founders.values()) == {2}
