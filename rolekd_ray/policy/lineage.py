"""Who descends from whom, and the schedule that a line of descent lived under."""

from rolekd_ray.policy.population import Population
from rolekd_ray.policy.schedule import Schedule, Segment, merged


def ancestors(population: Population, member: int, generation: int) -> list[int]:
    """Return which member carried this lineage in each generation, from 0 to `generation`."""
    carriers = [member]
    for step in range(generation, 0, -1):
        donor = population.jobs[carriers[-1], step].donor
        assert donor is not None
        carriers.append(donor)
    return carriers[::-1]


def schedule_of(population: Population, member: int, generation: int) -> Schedule:
    """Return the schedule of the roles that evolved, as a member's networks lived it up to a generation."""
    jobs = [population.jobs[carrier, g] for g, carrier in enumerate(ancestors(population, member, generation))]
    return Schedule(
        population.rule.space,
        {
            role: merged(Segment(job.end_epoch - job.start_epoch, job.policies[role]) for job in jobs)
            for role in population.rule.roles
        },
    )


def shortfalls(population: Population) -> list[str]:
    """Return a sentence for each member that can no longer reach the goal epoch."""
    last = population.generations - 1
    failed = {m: why for m, why in population.failed.get(last, {}).items() if m in population.live}
    return [
        f"member {member} did not reach epoch {population.epochs}: {reason}"
        for member, reason in sorted((population.dropped | failed).items())
    ]


def replacements(population: Population) -> list[str]:
    """Return a sentence for each interval that was given up and whose member's place went to a copy of another."""
    return [
        f"member {member} failed in epochs {job.start_epoch + 1} to {job.end_epoch}, a copy of member "
        f"{population.jobs[member, generation + 1].donor} took its place: {reason}"
        for generation, failed in sorted(population.failed.items())
        for member, reason in sorted(failed.items())
        if (job := population.jobs[member, generation]) and (member, generation + 1) in population.jobs
    ]


def effective_lineages(population: Population, generation: int) -> int:
    """Return how many members of generation 0 have descendants among the members that scored a generation.

    In the published search of role-kd one of 16 was left at epoch 27 of 200, after 23 of 279 exploits (its log).
    """
    members = population.scores.get(generation, {})
    return len({ancestors(population, member, generation)[0] for member in members})
