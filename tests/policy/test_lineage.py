"""Who descends from whom: histories written by hand, and what holds for every history."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_searches import BOTH, live_through, made_rule

from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.lineage import ancestors, effective_lineages, schedule_of
from rolekd_ray.policy.policy import random_policy
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Segment
from rolekd_ray.roles import Role

few = settings(max_examples=40, deadline=None)


def history(*donors: list[int], interval=3, epochs=100) -> Population:
    """A population whose member m of generation g + 1 copies `donors[g][m]`; every job has policies of its own."""
    size = len(donors[0]) if donors else 3
    population = Population(made_rule(population_size=size, epochs=epochs, interval_epochs=interval))
    rng = Random(0)
    for generation, row in enumerate([[None] * size, *donors]):
        population.scores[generation] = dict.fromkeys(range(size), 0.5)
        for member, donor in enumerate(row):
            kept = donor == member  # nobody's policies change without a copy
            policies = (
                population.jobs[member, generation - 1].policies
                if kept
                else {role: random_policy(population.rule.space, role, rng) for role in BOTH}
            )
            ends = population.ends
            start = ends[generation - 1] if generation else 0
            population.jobs[member, generation] = Job(
                member, generation, donor, start, ends[generation], epochs, policies
            )
            population.newest[member] = generation
    return population


def test_without_exploit_everyone_descends_from_itself():
    population = history([0, 1, 2], [0, 1, 2])
    assert [ancestors(population, m, 2) for m in range(3)] == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert [effective_lineages(population, g) for g in range(3)] == [3, 3, 3]
    for member in range(3):
        schedule = schedule_of(population, member, 2)
        for role in BOTH:
            assert schedule.roles[role] == (Segment(9, population.jobs[member, 0].policies[role]),)


def test_a_chain_of_copies_is_followed_backwards():
    """2 lived as 0 first, then as 1, then as itself."""
    population = history([0, 0, 2], [0, 1, 1])
    assert ancestors(population, 2, 2) == [0, 1, 2]
    schedule = schedule_of(population, 2, 2)
    for role in BOTH:
        assert schedule.roles[role] == tuple(
            Segment(3, population.jobs[key].policies[role]) for key in [(0, 0), (1, 1), (2, 2)]
        )
    assert ancestors(population, 1, 2) == [0, 1, 1]
    kept = schedule_of(population, 1, 2).roles[Role.STUDENT]
    assert [segment.epochs for segment in kept] == [3, 6], "equal neighbours are one segment"


def test_an_overwritten_branch_leaves_no_trace():
    """2 copied 0 after generation 0, and was overwritten by 1 after generation 1."""
    population = history([0, 1, 0], [0, 1, 1])
    assert ancestors(population, 2, 1) == [0, 2]
    assert ancestors(population, 2, 2) == [1, 1, 2]
    policies = [segment.policy for segment in schedule_of(population, 2, 2).roles[Role.STUDENT]]
    assert population.jobs[2, 1].policies[Role.STUDENT] not in policies
    assert [effective_lineages(population, g) for g in range(3)] == [3, 2, 2]


def test_two_that_copy_each_other_swap_their_pasts():
    population = history([1, 0])
    assert [ancestors(population, m, 1) for m in range(2)] == [[1, 0], [0, 1]]
    assert effective_lineages(population, 1) == 2


def test_lineages_die_out():
    population = history([0, 1, 2, 3, 4], [0, 0, 2, 2, 2], [0, 0, 0, 0, 0])
    assert [effective_lineages(population, g) for g in range(4)] == [5, 5, 2, 1]
    assert effective_lineages(population, 9) == 0, "nobody has scored it"
    population.scores[2] = {3: 0.5}
    assert effective_lineages(population, 2) == 1, "only those that scored count"


@few
@given(
    st.integers(0, 2**31), st.booleans(), st.integers(1, 4), st.integers(1, 20), st.sampled_from([BOTH, BOTH[:1]]),
    st.sampled_from([(), (25,)]),
)  # fmt: skip
def test_schedules_are_the_policies_that_the_networks_lived_under(seed, synchronous, interval, epochs, roles, extends):
    life = live_through(
        made_rule(seed=seed, synchronous=synchronous, interval_epochs=interval, epochs=epochs, roles=roles),
        seed, drop_chance=0.01, extends=extends,
    )  # fmt: skip
    population = life.population
    for member, generation in list(population.jobs)[:: max(1, len(population.jobs) // 20)]:
        schedule = schedule_of(population, member, generation)
        assert schedule.epochs == population.ends[generation]
        assert tuple(schedule.roles) == roles
        carrier, epoch = member, population.ends[generation]
        for step in range(generation, -1, -1):  # backwards from the state, as the files were copied
            job = population.jobs[carrier, step]
            assert job.end_epoch == epoch
            while epoch > job.start_epoch:
                epoch -= 1
                for role in roles:
                    assert schedule.policy_at(role, epoch) == job.policies[role]
            carrier = job.donor if step else carrier
        assert epoch == 0
        for role in roles:
            policies = [segment.policy for segment in schedule.roles[role]]
            assert all(a != b for a, b in pairwise(policies)), "neighbours differ"


def test_a_schedule_needs_a_job():
    with pytest.raises(KeyError):
        schedule_of(history([0, 1, 2]), 0, 7)
