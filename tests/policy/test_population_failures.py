"""The population rule: intervals that fail, and the copies that take their members' places."""

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import hashed, live_through, made_rule, new_life, open_jobs
from population_helpers import play_generation, rules, selected

from rolekd_ray.policy.lineage import ancestors, replacements, schedule_of, shortfalls

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31)
MODES = pytest.mark.parametrize("synchronous", [True, False])


def fail_some(life, generation, failing, scores):
    """Play a generation in which some members fail, all in the order of `scores`; return what was copied."""
    found = []
    for member, score in scores.items():
        job = life.population.jobs[member, generation]
        found += life.fail(job, f"{job.state} burnt") if member in failing else life.score(job, score)
    return found


@few
@given(rules, seeds, st.floats(0.01, 0.6), st.sampled_from([0.0, 0.05]))
def test_failures_never_stall_the_others_and_lose_no_place(rule, seed, fail_chance, drop_chance):
    life = live_through(rule, seed, fail_chance=fail_chance, drop_chance=drop_chance)
    population = life.population
    assert population.finished and not open_jobs(population)
    for member in population.live:
        for generation in range(population.generations):
            assert population.ended(member, generation)
    for (member, generation), job in population.jobs.items():
        if generation and not population.reported(member, generation - 1):
            assert job.donor != member and population.reported(job.donor, generation - 1)
    everyone = set(range(rule.population_size))
    assert population.dropped.keys() == everyone - population.live
    at_goal = population.scores.get(population.generations - 1, {}).keys() & population.live
    assert len(shortfalls(population)) == len(everyone - at_goal), "each member that falls short is named"


@few
@given(st.integers(1, 50), st.integers(2, 16), seeds, st.data())
def test_who_failed_copies_one_of_the_best_and_the_others_are_selected_without_it(percent, size, seed, data):
    life = new_life(made_rule(seed=seed, population_size=size, quantile=percent / 100))
    failing = data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    scores = {m: hashed(seed, m) for m in data.draw(st.permutations(range(size)))}
    found = fail_some(life, 0, failing, scores)
    scored = {m: s for m, s in scores.items() if m not in failing}
    worst, best = selected(scored, percent, ceil)
    best = best or {max(scored, key=scored.__getitem__)}  # one alone copies nobody, but can be copied
    assert {f.recipient for f in found} == worst | failing and len(found) == len(worst | failing)
    for f in found:
        assert f.donor in best and f.donor_score == scores[f.donor]
        failed = f.recipient in failing
        assert f.recipient_score == (None if failed else scores[f.recipient])
        assert f.reason == (f"{f.recipient:03d}-0000 burnt" if failed else None)
        job = life.population.jobs[f.recipient, 1]
        assert (job.donor, job.source) == (f.donor, f"{f.donor:03d}-0000")
    assert life.population.live == set(range(size))


@MODES
def test_a_generation_in_which_all_fail_ends_the_search(synchronous):
    life = new_life(made_rule(population_size=4, synchronous=synchronous))
    play_generation(life, {m: m / 4 for m in range(4)})
    assert not fail_some(life, 1, {0, 1, 2, 3}, dict.fromkeys(range(4), 0.0))
    assert not life.population.live and life.population.finished
    assert shortfalls(life.population) == [
        f"member {m} did not reach epoch 10: {m:03d}-0001 burnt" for m in range(4)
    ]  # fmt: skip


def test_asynchronously_who_fails_first_waits_for_the_first_score_of_its_generation():
    life = new_life(made_rule(population_size=4, synchronous=False))
    first, other, third, _ = open_jobs(life.population)
    assert not life.fail(first) and not life.fail(other)
    assert life.population.ask(0) is None and life.population.ask(1) is None
    found = life.score(third, 0.1)
    assert [(f.recipient, f.donor) for f in found] == [(0, 2), (1, 2)]
    assert {(j.member, j.generation) for j in open_jobs(life.population)} == {(0, 1), (1, 1), (2, 1), (3, 0)}


def test_asynchronously_who_fails_last_copies_one_that_went_on_long_ago():
    life = new_life(made_rule(population_size=2, synchronous=False))
    for _ in range(3):
        life.score(life.population.ask(0), 0.5)
    (found,) = life.fail(life.population.ask(1))
    assert (found.recipient, found.donor, life.population.ask(1).source) == (1, 0, "000-0000")


def test_asynchronously_who_waits_for_one_that_is_dropped_does_not_wait_for_ever():
    life = new_life(made_rule(population_size=2, synchronous=False))
    life.fail(life.population.ask(0), "fire")
    life.tell({"kind": "drop", "member": 1, "reason": "water"})
    assert life.population.dropped == {0: "fire", 1: "water"} and life.population.finished


@MODES
def test_who_fails_in_the_last_interval_falls_short_unless_the_search_is_prolonged(synchronous):
    life = new_life(made_rule(population_size=4, epochs=6, synchronous=synchronous))
    scores = {m: 1 - m / 4 for m in range(4)}
    play_generation(life, scores)
    assert not fail_some(life, 1, {3}, scores)
    population = life.population
    assert population.finished and population.live == {0, 1, 2, 3} and population.best() == (0, 1)
    assert shortfalls(population) == ["member 3 did not reach epoch 6: 003-0001 burnt"]
    found = life.tell({"kind": "extend", "epochs": 9})
    assert [f.donor for f in found if f.recipient == 3] == [0] and not shortfalls(population)
    assert len(open_jobs(population)) == 4


def test_the_line_of_descent_leads_through_the_donor():
    life = new_life(made_rule(population_size=4, epochs=6))
    fail_some(life, 0, {3}, {m: 1 - m / 4 for m in range(4)})
    population = life.population
    play_generation(life, {m: m / 4 for m in range(4)})
    assert population.best() == (3, 1) and ancestors(population, 3, 1) == [0, 3]
    assert schedule_of(population, 3, 1).epochs == 6
    assert replacements(population) == [
        "member 3 failed in epochs 1 to 3, a copy of member 0 took its place: 003-0000 burnt"
    ]


def test_a_failure_is_only_of_the_interval_under_way():
    life = new_life(made_rule(population_size=4))
    job = life.population.ask(0)
    life.score(job, 0.5)
    for wrong in (job, life.population.jobs[0, 0]):
        with pytest.raises(AssertionError, match="ended generation 0 twice"):
            life.fail(wrong)
