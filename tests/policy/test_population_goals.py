"""The population rule: goals and their prolongation, dropped members, the best member."""

from dataclasses import replace
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import hashed, live_through, made_rule, new_life, open_jobs
from population_helpers import play_generation, rules, selected

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**31)


# ---- goals


@few
@given(rules, seeds)
def test_every_member_reaches_the_goal_in_intervals_that_add_up(rule, seed):
    population = live_through(rule, seed).population
    assert population.finished and population.live == set(range(rule.population_size))
    assert population.generations == ceil(rule.epochs / rule.interval_epochs)
    for member in population.live:
        jobs = [population.jobs[member, g] for g in range(population.generations)]
        assert all(population.reported(member, job.generation) for job in jobs)
        assert (jobs[0].start_epoch, jobs[-1].end_epoch) == (0, rule.epochs)
        assert all(a.end_epoch == b.start_epoch for a, b in pairwise(jobs))
        lengths = [job.end_epoch - job.start_epoch for job in jobs]
        assert set(lengths[:-1]) <= {rule.interval_epochs} and 0 < lengths[-1] <= rule.interval_epochs
        assert {job.total_epochs for job in jobs} == {rule.epochs}
    assert not any((member, population.generations) in population.jobs for member in population.live)


@pytest.mark.parametrize("synchronous", [True, False])
def test_prolonging_a_finished_search_adds_intervals_after_its_end(synchronous):
    life = live_through(made_rule(synchronous=synchronous), 0)
    before, found = dict(life.population.jobs), life.tell({"kind": "extend", "epochs": 16})
    assert not life.population.finished
    assert life.population.ends == [3, 6, 9, 10, 13, 16]
    assert life.population.jobs.items() >= before.items(), "what was trained stays"
    jobs = open_jobs(life.population)
    assert [(j.member, j.generation, j.start_epoch, j.end_epoch, j.total_epochs) for j in jobs] == [
        (member, 4, 10, 13, 16) for member in range(8)
    ]
    worst, best = selected(life.population.scores[3], 25, ceil)
    assert {f.recipient for f in found} == worst and {f.donor for f in found} <= best


@few
@given(seeds, st.one_of(st.tuples(st.just(True), st.integers(0, 23)), st.tuples(st.just(False), st.integers(0, 16))))
def test_prolonging_on_the_way_equals_a_search_that_was_longer_from_the_start(seed, when):
    """But for `total_epochs` of what was decided before. Asynchronous: while nobody stands at the goal."""
    synchronous, records = when
    rule = made_rule(seed=seed, epochs=9, interval_epochs=3, synchronous=synchronous)
    longer, prolonged = new_life(replace(rule, epochs=17)), new_life(rule)
    done = 0
    while jobs := open_jobs(longer.population):
        job = min(jobs, key=lambda job: (job.generation, job.member))
        if done == records:
            prolonged.tell({"kind": "extend", "epochs": 17})
        for life in (longer, prolonged):
            life.score(job, hashed(seed, job.state))
        done += 1
    assert prolonged.population.ends == longer.population.ends == [3, 6, 9, 12, 15, 17]
    assert prolonged.population.finished
    assert prolonged.found == longer.found
    plain = [{k: replace(j, total_epochs=0) for k, j in life.population.jobs.items()} for life in (longer, prolonged)]
    assert plain[0] == plain[1]
    assert {j.total_epochs for j in prolonged.population.jobs.values()} <= {9, 17}
    assert {j.total_epochs for (_, g), j in prolonged.population.jobs.items() if g > 2} == {17}


def test_an_interval_under_way_keeps_its_end_when_the_search_is_prolonged():
    life = new_life(made_rule(epochs=4))  # ends at 3 and 4
    play_generation(life, {m: float(m) for m in range(8)})
    life.tell({"kind": "extend", "epochs": 9})
    assert life.population.ends == [3, 4, 7, 9]
    assert {(job.start_epoch, job.end_epoch, job.total_epochs) for job in open_jobs(life.population)} == {(3, 4, 4)}


# ---- drops


@few
@given(rules, seeds, st.floats(0.01, 0.3))
def test_drops_never_stall_the_others(rule, seed, drop_chance):
    life = live_through(rule, seed, drop_chance=drop_chance)
    population = life.population
    assert population.finished and not open_jobs(population)
    for member in population.live:
        assert all(population.reported(member, g) for g in range(population.generations))
    gone: dict[int, int] = {}  # member -> after how many records
    for number, record in enumerate(life.records):
        if record["kind"] == "drop":
            gone[record["member"]] = number
    for number, (jobs, *_) in enumerate(life.seen):
        dropped = {member for member, since in gone.items() if since <= number}
        assert all(population.ask(member) is None for member in dropped)
        new = jobs.keys() - (life.seen[number - 1][0].keys() if number else set())
        assert all(jobs[key].donor not in dropped and key[0] not in dropped for key in new)


def test_dropping_the_last_member_waited_for_decides_at_once():
    life = new_life(made_rule())
    for member in range(7):
        assert not life.score(life.population.ask(member), member / 8)
    assert open_jobs(life.population) == [life.population.jobs[7, 0]]
    found = life.tell({"kind": "drop", "member": 7, "reason": "fire"})
    assert {f.recipient for f in found} == {0, 1} and {f.donor for f in found} <= {5, 6}  # ceil(7 / 4) of each
    assert [job.member for job in open_jobs(life.population)] == list(range(7))


@pytest.mark.parametrize("synchronous", [True, False])
def test_a_dropped_member_is_neither_donor_nor_counted(synchronous):
    """0 and 1 are the best by far, and dropped after they scored."""
    for seed in range(20):
        life = new_life(made_rule(seed=seed, population_size=10, quantile=0.25, synchronous=synchronous))
        for member in (0, 1):
            life.score(life.population.ask(member), 1 - member / 10)
        for member in (0, 1):
            life.tell({"kind": "drop", "member": member, "reason": "fire"})
        found = play_generation(life, {member: 0.5 - member / 100 for member in range(2, 10)})
        assert {f.donor for f in found} <= {2, 3}
        assert {f.recipient for f in found} == ({8, 9} if synchronous else set(range(5, 10)))  # a quarter of 4 is 1


def test_a_population_without_members_is_finished():
    life = new_life(made_rule(population_size=2))
    for member in range(2):
        life.tell({"kind": "drop", "member": member, "reason": "fire"})
    assert life.population.finished and not open_jobs(life.population)


# ---- the best member


def test_the_best_is_of_the_newest_generation_that_all_reached():
    life = new_life(made_rule(population_size=4, epochs=9))
    with pytest.raises(ValueError):
        life.population.best()
    life.score(life.population.ask(2), 0.9)
    assert life.population.best() == (2, 0), "nobody else has a score"
    play_generation(life, {0: 0.5, 1: 0.7, 3: 0.7})
    assert life.population.best() == (2, 0)
    life.score(life.population.ask(0), 0.99)
    assert life.population.best() == (2, 0), "generation 1 is not complete"
    life.tell({"kind": "drop", "member": 2, "reason": "fire"})
    assert life.population.best() == (1, 0), "the dropped one cannot be continued; ties go to the lower number"
    play_generation(life, {1: 0.1, 3: 0.2})
    assert life.population.best() == (0, 1)
