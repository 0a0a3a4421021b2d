"""Policies proposed by Optuna: what a recipient explores with, learned from what each interval so far has gained.

The only state is the log. For every proposal a study is built anew from the population, and its sampler is seeded by
(run seed, generation, member), so whoever has the same log proposes the same: a search that was killed and gone on
with, or one whose scores came in another order (synchronous).
"""

from collections.abc import Callable
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING

from rolekd_ray.policy.jobs import Job, Policies
from rolekd_ray.policy.points import Bins, Dimension, Range, dimensions, point_of, policies_at
from rolekd_ray.policy.population import Population, Rule

if TYPE_CHECKING:  # a search without proposals need not import it
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

Proposer = Callable[[Population, int], Policies]
"""Returns the policies that one of `Population.pending` goes on with."""

MOST_INTERVALS = 256
"""A study knows so many of the newest intervals: gains of long ago say little of what helps now, and a Gaussian
process of all would cost the cube of their number."""


def proposer_of(rule: Rule) -> Proposer | None:
    """Return who proposes under a rule; None if its explorer mutates by itself."""
    return propose if rule.explorer == "optuna" else None


def propose(population: Population, member: int) -> Policies:
    """Return what Optuna would try next, as a member's policies.

    One study over all roles that evolve: one score comes of the policies of all of them together, so a study per role
    would take the other role's change for noise. Each interval that scored is a trial, perturbed or not: its
    parameters are the policies (bins as whole numbers, scalars on their own scale, choices as categories), its value
    is that of `gains`. Intervals under proposed policies that have not scored yet are told as if they had gained the
    mean, so that what is proposed next goes elsewhere. While there are fewer than ten trials Optuna draws at random.

    The donor's networks are copied, its policies are not: proposals are global, where `pba` walks on from the donor's.

    Source: ours; that a population's explore step be guided by a model of score changes is the idea of PB2
        (arXiv:2002.02518), whose Gaussian process over time is not implemented here.
    """
    import optuna
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells of each trial, and of packages that would be faster
    rule, space = population.rule, population.rule.space
    where = _distributions(rule)
    generation, _ = population.pending[member]
    study = optuna.create_study(direction="maximize", sampler=_sampler(rule, generation, member))
    known = list(gains(population).items())[-MOST_INTERVALS:]
    # Not as running trials: of Optuna's samplers only newer Gaussian processes look at these, at twice the cost
    known += [((job.member, job.generation), 0.0) for job in _proposed_and_under_way(population)]
    study.add_trials(
        create_trial(params=point_of(population.jobs[place].policies, space), distributions=where, value=gain)
        for place, gain in known
    )
    return policies_at(study.ask(where).params, space, rule.roles)


def gains(population: Population) -> dict[tuple[int, int], float]:
    """Return what each interval that scored gained, by (member, generation): its score minus that it started from.

    In order of generations and members, not of arrival: Optuna weighs late trials higher.

    From that the mean over its generation is taken off. Early generations gain much whatever their policies, later
    ones little; a study of raw gains would only learn which policies were tried early. Fresh networks start from 0.
    """
    found: dict[tuple[int, int], float] = {}
    for generation, scores in population.scores.items():
        donors = {member: population.jobs[member, generation].donor for member in sorted(scores)}
        before = {m: 0.0 if d is None else population.scores[generation - 1][d] for m, d in donors.items()}
        mean = fmean(scores[member] - before[member] for member in donors)
        found |= {(member, generation): scores[member] - before[member] - mean for member in donors}
    return found


def _proposed_and_under_way(population: Population) -> list[Job]:
    jobs = (population.jobs[member, population.newest[member]] for member in sorted(population.live))
    return [
        job for job in jobs if job.donor not in (None, job.member) and not population.ended(job.member, job.generation)
    ]


def _distributions(rule: Rule) -> dict[str, "BaseDistribution"]:
    return {dimension.name: _distribution(dimension) for dimension in dimensions(rule.space, rule.roles)}


def _distribution(dimension: Dimension) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, Bins):
        return IntDistribution(0, dimension.bins - 1)
    if isinstance(dimension, Range):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return CategoricalDistribution(dimension.values)


def _sampler(rule: Rule, generation: int, member: int) -> "BaseSampler":
    from optuna.samplers import GPSampler, TPESampler

    seed = Random(f"{rule.seed}/propose/{generation}/{member}").getrandbits(32)  # seeded by the text's SHA-512
    # New for every proposal: GPSampler keeps what it fitted last, which no log holds
    return TPESampler(seed=seed) if rule.optuna_sampler == "tpe" else GPSampler(seed=seed)
