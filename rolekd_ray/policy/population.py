"""The population rule: who trains what next, who copies whom.

A pure fold: records of the log go in (`tell`), jobs (`ask`) and perturbations come out. The Ray scheduler, the
one-process runner, the dispatcher and every restart use this class and nothing else, so equal scores give equal
decisions. It draws from generators seeded by (run seed, generation, member) alone.

Source: truncation selection of population-based training (Jaderberg et al. 2017, arXiv:1711.09846) with the mutation
of PBA (Ho et al. 2019). Unlike Ray's asynchronous PBT, a recipient always copies its donor as it was at the same
generation: states are kept in files, so no member is ever rewound.

With an explorer of `PROPOSED` a recipient waits, once it has copied its donor, until a `propose` record brings the
policies it goes on with. Whoever made them, the log holds them, so replay needs neither him nor his library.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

from rolekd_ray.errors import unknown_name
from rolekd_ray.policy.explorers import EXPLORERS, PROPOSED, SAMPLERS
from rolekd_ray.policy.jobs import Job, Perturbation, Policies, policies_from_dict, policies_to_dict
from rolekd_ray.policy.points import check_policies
from rolekd_ray.policy.policy import random_policy, zero_policy
from rolekd_ray.policy.space import SearchSpace, parse_space
from rolekd_ray.roles import Role

FORMAT = "rolekd.log/1"


@dataclass(frozen=True, slots=True)
class Rule:
    """Everything the decisions depend on beside the scores.

    `roles` are those whose policies evolve. `quantile`, in (0, 0.5]: the worst share copies the best share.
    `synchronous`: decide when the whole generation has scored; else at every report, among the members that have
    scored this generation so far, as soon as these are at least 1/`quantile`. `first_policies`: of each member, where
    `initial` does not say all; they stand in the log, so replay needs no other file. `explorer`: a name of `EXPLORERS`
    or `PROPOSED`; `optuna_sampler` is for the latter. `min_lineages`: an exploit that would leave fewer members of
    generation 0 with descendants is not done; failures and drops may still do so.
    """

    seed: int
    population_size: int
    epochs: int
    interval_epochs: int
    roles: tuple[Role, ...]
    space: SearchSpace
    quantile: float = 0.25
    synchronous: bool = True
    initial: str = "zero"
    resample_probability: float = 0.2
    max_shift: int = 3
    explorer: str = "pba"
    optuna_sampler: str = "tpe"
    min_lineages: int = 1
    first_policies: tuple[Policies, ...] | None = None

    def __post_init__(self):
        for key, allowed in {"explorer": (*EXPLORERS, *PROPOSED), "optuna_sampler": SAMPLERS}.items():
            if getattr(self, key) not in allowed:  # a log may hold any
                raise ValueError(unknown_name("rule", key, getattr(self, key), allowed))
        if self.first_policies is not None:
            if len(self.first_policies) != self.population_size:
                raise ValueError(f"first_policies: got {len(self.first_policies)}; expected {self.population_size}")
            for policies in self.first_policies:
                check_policies(policies, self.space, self.roles)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the log's first record."""
        data = {key: getattr(self, key) for key in self.__dataclass_fields__}
        first = self.first_policies and [policies_to_dict(policies, self.space) for policies in self.first_policies]
        return data | {
            "roles": [str(role) for role in self.roles],
            "space": self.space.to_dict(),
            "first_policies": first,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Rule":
        """Read `to_dict`'s form; what logs of older versions lack has its default."""
        space = parse_space(data["space"], where="log: space")
        first = data.get("first_policies")
        return cls(
            **{
                **data,
                "roles": tuple(Role(role) for role in data["roles"]),
                "space": space,
                "first_policies": None if first is None else tuple(policies_from_dict(row, space) for row in first),
            }
        )


class Population:
    """The fold. `ask` for a member's job, `tell` every record of the log in order; see the module."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.live = set(range(rule.population_size))
        self.dropped: dict[int, str] = {}  # member -> why it is gone for good
        self.scores: dict[int, dict[int, float]] = {}  # generation -> member -> score
        self.failed: dict[int, dict[int, str]] = {}  # generation -> member -> why its interval was given up
        self.jobs: dict[tuple[int, int], Job] = {}  # (member, generation) -> job, all that were ever decided
        self.newest: dict[int, int] = {}  # member -> generation of its newest job
        self.pending: dict[int, tuple[int, int]] = {}  # who waits for a proposal -> (generation decided, donor)
        self.founders: dict[tuple[int, int], int] = {}  # (member, generation) -> whom it descends from in generation 0
        self.ends = _generation_ends([], rule.epochs, rule.interval_epochs)
        self.epochs = rule.epochs
        for member in range(rule.population_size):
            self._add_job(member, 0, None, self._first_policies(member))

    @classmethod
    def replay(cls, records: Iterable[Mapping[str, Any]]) -> "Population":
        """Return the population that a log describes; its first record is `init`."""
        records = iter(records)
        population = cls(Rule.from_dict(next(records)["rule"]))
        for record in records:
            population.tell(record)
        return population

    @property
    def lineages(self) -> int:
        """How many members of generation 0 have descendants among the live ones, by what is decided so far."""
        return len(self._founders_alive())

    @property
    def generations(self) -> int:
        """How many intervals each member trains."""
        return len(self.ends)

    @property
    def finished(self) -> bool:
        """Whether no live member has anything to train before the goal epoch."""
        return self.complete(self.generations - 1)

    def reported(self, member: int, generation: int) -> bool:
        """Whether this interval's score is in the log."""
        return member in self.scores.get(generation, ())

    def ended(self, member: int, generation: int) -> bool:
        """Whether this interval was scored or given up."""
        return self.reported(member, generation) or member in self.failed.get(generation, ())

    def complete(self, generation: int) -> bool:
        """Whether this generation has ended for all live members."""
        return all(self.ended(member, generation) for member in self.live)

    def ask(self, member: int) -> Job | None:
        """Return the interval to train next; None while the decision waits for others or a proposal, and at the end."""
        generation = self.newest[member]
        waiting = member in self.live and not self.ended(member, generation)
        return self.jobs[member, generation] if waiting else None

    def tell(self, record: Mapping[str, Any]) -> list[Perturbation]:
        """Take one record and return what it led to.

        `score`: an interval's outcome. `fail`: an interval was given up; its member will copy one that scored the same
        generation. `drop`: a member is gone for good. `extend`: a further goal. `propose`: the policies that one of
        `pending` goes on with.

        Raises:
            ValueError: a proposal that does not fit.
        """
        kind = record["kind"]
        if kind == "score":
            self._tell_score(record["member"], record["generation"], record["score"])
        elif kind == "fail":
            self._tell_failure(record["member"], record["generation"], record["reason"])
        elif kind == "drop":
            self._drop(record["member"], record["reason"])
        elif kind == "propose":
            found = self._tell_proposal(record["member"], record["generation"], record["policies"])
            return [found, *self._decide()]
        else:
            assert kind == "extend", f"unknown kind of record: {kind!r}"
            self.epochs = record["epochs"]
            kept = self.ends[: max(self.newest.values()) + 1]
            self.ends = _generation_ends(kept, self.epochs, self.rule.interval_epochs)
        return self._decide()

    def best(self) -> tuple[int, int]:
        """Return (member, generation) of the best score of the newest generation that has ended for all live members.

        Ties go to the lower number. ValueError while nothing has scored.
        """
        complete = [g for g in self.scores if self.live and self.complete(g)]
        generation = max(complete or self.scores)
        scores = self.scores[generation]
        candidates = (self.live & scores.keys()) or scores.keys()
        return max(sorted(candidates), key=scores.__getitem__), generation

    def _decide(self) -> list[Perturbation]:
        return self._decide_together() if self.rule.synchronous else self._decide_one_by_one()

    def _tell_proposal(self, member: int, generation: int, data: Mapping[str, Any]) -> Perturbation:
        waiting, donor = self.pending.get(member, (None, -1))
        if waiting != generation:
            raise ValueError(f"member {member} waits for no proposal after generation {generation}")
        policies = policies_from_dict(data, self.rule.space)
        check_policies(policies, self.rule.space, self.rule.roles)
        del self.pending[member]
        return self._copy(member, generation, donor, {role: policies[role] for role in self.rule.roles})

    def _tell_score(self, member: int, generation: int, score: float) -> None:
        assert not self.ended(member, generation), f"member {member} ended generation {generation} twice"
        assert isfinite(score), score
        self.scores.setdefault(generation, {})[member] = score

    def _tell_failure(self, member: int, generation: int, reason: str) -> None:
        assert member in self.live and generation == self.newest[member], f"member {member} trains something else"
        assert not self.ended(member, generation), f"member {member} ended generation {generation} twice"
        self.failed.setdefault(generation, {})[member] = reason
        self._drop_who_waits_in_vain()

    def _drop(self, member: int, reason: str) -> None:
        if member in self.live:
            self.live.discard(member)
            self.pending.pop(member, None)
            self.dropped[member] = reason
            self._drop_who_waits_in_vain()

    def _drop_who_waits_in_vain(self) -> None:
        """Drop failed members for whom no live member of the same generation is, or ever will be, there to copy."""
        for member in sorted(self.live - self.pending.keys()):
            generation = self.newest[member]
            if member in self.failed.get(generation, ()) and not any(
                self.reported(other, generation)
                or self.newest[other] < generation
                or (self.newest[other] == generation and not self.ended(other, generation))
                for other in self.live
            ):
                self._drop(member, self.failed[generation][member])

    def _decide_together(self) -> list[Perturbation]:
        """Decide the generation everybody waits behind, if it has ended for all live members."""
        generation = max((self.newest[member] for member in self.live), default=0)
        if generation + 1 >= self.generations or not self.live or self.pending or not self.complete(generation):
            return []
        donors = self._donors(generation, ceil)
        return [found for m in sorted(self.live) for found in self._advance(m, generation, donors.get(m, []))]

    def _decide_one_by_one(self) -> list[Perturbation]:
        """Let everyone go on who has ended an interval; who failed waits for the first that scores the generation."""
        found = []
        for member in sorted(self.live - self.pending.keys()):
            generation = self.newest[member]
            if generation + 1 < self.generations and self.ended(member, generation):
                donors = self._donors(generation, int).get(member, [])
                if donors or self.reported(member, generation):
                    found += self._advance(member, generation, donors)
        return found

    def _donors(self, generation: int, rounding) -> dict[int, list[int]]:
        """Return whom members may copy after a generation: the worst, and those who failed, one of the best.

        Worst and best are equally many; ties are broken by a seeded draw.
        """
        scores = self.scores.get(generation, {})
        members = sorted(self.live & scores.keys())
        self._rng("ties", generation).shuffle(members)
        members.sort(key=scores.__getitem__)
        # 1e-9: 0.28 * 25 is 7.000000000000001, and ceil would take an eighth
        count = min(
            rounding(self.rule.quantile * len(members) - (1e-9 if rounding is ceil else -1e-9)), len(members) // 2
        )
        best = members[len(members) - count :]
        failed = self.live & self.failed.get(generation, {}).keys()
        return dict.fromkeys(members[:count], best) | dict.fromkeys(failed, best or members[-1:])

    def _advance(self, member: int, generation: int, donors: list[int]) -> list[Perturbation]:
        """Give a member its next job; with donors, exploit one of them and explore, or wait for a proposal."""
        rule = self.rule
        rng = self._rng("exploit", generation, member)
        donor = rng.choice(donors) if donors else member
        if donor == member or self._ends_a_lineage_too_many(member, generation, donor):
            self._add_job(member, generation + 1, member, self.jobs[member, generation].policies)
            return []
        if rule.explorer in PROPOSED:
            self.pending[member] = generation, donor
            return []
        explore = EXPLORERS[rule.explorer]
        after = {
            role: explore(
                self.jobs[donor, generation].policies[role],
                rule.space,
                role,
                rng,
                resample_probability=rule.resample_probability,
                max_shift=rule.max_shift,
            )
            for role in rule.roles
        }
        return [self._copy(member, generation, donor, after)]

    def _copy(self, member: int, generation: int, donor: int, after: Policies) -> Perturbation:
        """Let a member go on as a copy of its donor under these policies."""
        self._add_job(member, generation + 1, donor, after)
        scores, before = self.scores[generation], self.jobs[member, generation].policies
        reason = self.failed.get(generation, {}).get(member)
        return Perturbation(generation, member, donor, scores.get(member), scores[donor], before, after, reason)

    def _ends_a_lineage_too_many(self, member: int, generation: int, donor: int) -> bool:
        """Whether this exploit would take the last member of a lineage where no further one may end.

        Who failed has nothing to go on with but a copy.
        """
        if self.rule.min_lineages <= 1 or not self.reported(member, generation):
            return False
        others = self._founders_alive(but=member)
        after = others | {self.founders[donor, generation]}
        return len(after) < min(self.rule.min_lineages, len(others | {self.founders[member, generation]}))

    def _founders_alive(self, but: int | None = None) -> set[int]:
        """Return from whom the live members descend, one of them left out.

        Who waits for a proposal has copied its donor; who failed and waits for a donor has nothing to go on with.
        """
        found = set()
        for member in self.live - {but}:
            generation, source = self.pending.get(member, (self.newest[member], member))
            if source not in self.failed.get(generation, ()):
                found.add(self.founders[source, generation])
        return found

    def _add_job(self, member: int, generation: int, donor: int | None, policies: Policies) -> None:
        start = self.ends[generation - 1] if generation else 0
        self.newest[member] = generation
        self.founders[member, generation] = member if donor is None else self.founders[donor, generation - 1]
        self.jobs[member, generation] = Job(
            member, generation, donor, start, self.ends[generation], self.epochs, policies
        )

    def _first_policies(self, member: int) -> Policies:
        space = self.rule.space
        if self.rule.first_policies is not None:
            return self.rule.first_policies[member]
        if self.rule.initial == "zero":
            return {role: zero_policy(space, role) for role in self.rule.roles}
        return {role: random_policy(space, role, self._rng("initial", member, role)) for role in self.rule.roles}

    def _rng(self, *purpose: object) -> random.Random:
        return random.Random("/".join(map(str, (self.rule.seed, *purpose))))  # seeded by the text's SHA-512


def _generation_ends(kept: list[int], epochs: int, interval: int) -> list[int]:
    """Return the epoch after each generation: the kept ones, then one per interval; the last may be shorter."""
    last = kept[-1] if kept else 0
    return kept + [min(end, epochs) for end in range(last + interval, epochs + interval, interval)]
