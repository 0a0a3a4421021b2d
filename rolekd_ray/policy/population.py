"""The population rule: who trains what next, who copies whom.

A pure fold: records of the log go in (`tell`), jobs (`ask`) and perturbations come out. The Ray scheduler, the
one-process runner, the dispatcher and every restart use this class and nothing else, so equal scores give equal
decisions. It draws from generators seeded by (run seed, generation, member) alone.

Source: truncation selection of population-based training (Jaderberg et al. 2017, arXiv:1711.09846) with the mutation
of PBA (Ho et al. 2019). Unlike Ray's asynchronous PBT, a recipient always copies its donor as it was at the same
generation: states are kept in files, so no member is ever rewound.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Any

from rolekd_ray.policy.explore import explore
from rolekd_ray.policy.jobs import Job, Perturbation, Policies
from rolekd_ray.policy.policy import random_policy, zero_policy
from rolekd_ray.policy.space import SearchSpace, parse_space
from rolekd_ray.roles import Role

FORMAT = "rolekd.log/1"


@dataclass(frozen=True, slots=True)
class Rule:
    """Everything the decisions depend on beside the scores.

    `roles` are those whose policies evolve. `quantile`, in (0, 0.5]: the worst share copies the best share.
    `synchronous`: decide when the whole generation has scored; else at every report, among the members that have
    scored this generation so far, as soon as these are at least 1/`quantile`.
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

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the log's first record."""
        data = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return data | {"roles": [str(role) for role in self.roles], "space": self.space.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Rule":
        """Read `to_dict`'s form."""
        space = parse_space(data["space"], where="log: space")
        return cls(**{**data, "roles": tuple(Role(role) for role in data["roles"]), "space": space})


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
        """Return the interval to train next; None while the decision waits for others, and at the end."""
        generation = self.newest[member]
        waiting = member in self.live and not self.ended(member, generation)
        return self.jobs[member, generation] if waiting else None

    def tell(self, record: Mapping[str, Any]) -> list[Perturbation]:
        """Take one record and return what it led to.

        `score`: an interval's outcome. `fail`: an interval was given up; its member will copy one that scored the same
        generation. `drop`: a member is gone for good. `extend`: a further goal.
        """
        kind = record["kind"]
        if kind == "score":
            self._tell_score(record["member"], record["generation"], record["score"])
        elif kind == "fail":
            self._tell_failure(record["member"], record["generation"], record["reason"])
        elif kind == "drop":
            self._drop(record["member"], record["reason"])
        else:
            assert kind == "extend", f"unknown kind of record: {kind!r}"
            self.epochs = record["epochs"]
            kept = self.ends[: max(self.newest.values()) + 1]
            self.ends = _generation_ends(kept, self.epochs, self.rule.interval_epochs)
        return self._decide_together() if self.rule.synchronous else self._decide_one_by_one()

    def best(self) -> tuple[int, int]:
        """Return (member, generation) of the best score of the newest generation that has ended for all live members.

        Ties go to the lower number. ValueError while nothing has scored.
        """
        complete = [g for g in self.scores if self.live and self.complete(g)]
        generation = max(complete or self.scores)
        scores = self.scores[generation]
        candidates = (self.live & scores.keys()) or scores.keys()
        return max(sorted(candidates), key=scores.__getitem__), generation

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
            self.dropped[member] = reason
            self._drop_who_waits_in_vain()

    def _drop_who_waits_in_vain(self) -> None:
        """Drop failed members for whom no live member of the same generation is, or ever will be, there to copy."""
        for member in sorted(self.live):
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
        if generation + 1 >= self.generations or not self.live or not self.complete(generation):
            return []
        donors = self._donors(generation, ceil)
        return [found for m in sorted(self.live) for found in self._advance(m, generation, donors.get(m, []))]

    def _decide_one_by_one(self) -> list[Perturbation]:
        """Let everyone go on who has ended an interval; who failed waits for the first that scores the generation."""
        found = []
        for member in sorted(self.live):
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
        """Give a member its next job; with donors, exploit one of them and explore."""
        rule = self.rule
        if not donors:
            self._add_job(member, generation + 1, member, self.jobs[member, generation].policies)
            return []
        rng = self._rng("exploit", generation, member)
        donor = rng.choice(donors)
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
        self._add_job(member, generation + 1, donor, after)
        scores, before = self.scores[generation], self.jobs[member, generation].policies
        reason = self.failed.get(generation, {}).get(member)
        return [Perturbation(generation, member, donor, scores.get(member), scores[donor], before, after, reason)]

    def _add_job(self, member: int, generation: int, donor: int | None, policies: Policies) -> None:
        start = self.ends[generation - 1] if generation else 0
        self.newest[member] = generation
        self.jobs[member, generation] = Job(
            member, generation, donor, start, self.ends[generation], self.epochs, policies
        )

    def _first_policies(self, member: int) -> Policies:
        space = self.rule.space
        if self.rule.initial == "zero":
            return {role: zero_policy(space, role) for role in self.rule.roles}
        return {role: random_policy(space, role, self._rng("initial", member, role)) for role in self.rule.roles}

    def _rng(self, *purpose: object) -> random.Random:
        return random.Random("/".join(map(str, (self.rule.seed, *purpose))))  # seeded by the text's SHA-512


def _generation_ends(kept: list[int], epochs: int, interval: int) -> list[int]:
    """Return the epoch after each generation: the kept ones, then one per interval; the last may be shorter."""
    last = kept[-1] if kept else 0
    return kept + [min(end, epochs) for end in range(last + interval, epochs + interval, interval)]
