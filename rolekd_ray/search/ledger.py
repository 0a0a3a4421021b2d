"""The ledger: log, population and everything derived from them, kept in step by the search's one writer."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite
from typing import Any, Protocol

from rolekd_ray.errors import StorageError
from rolekd_ray.files import delete_tree, write_atomically, writing
from rolekd_ray.policy.jobs import Job, Perturbation, policies_to_dict, state_name
from rolekd_ray.policy.population import FORMAT, Population, Rule
from rolekd_ray.search.log import begin, fold, open_log
from rolekd_ray.search.proposer import Proposer, proposer_of
from rolekd_ray.storage import ObjectPath, Place

LINEAGE = "lineage.jsonl"
STATES = "states"


class Observer(Protocol):
    """Hears of a search as it goes on; called after the record is on disk."""

    def scored(self, job: Job, record: Mapping[str, Any], population: Population) -> None:
        """Hear that a member scored an interval."""
        ...

    def perturbed(self, perturbation: Perturbation, population: Population) -> None:
        """Hear that a member copied another."""
        ...

    def dropped(self, record: Mapping[str, Any], population: Population) -> None:
        """Hear that a member's interval was given up (`fail`), or the member for good (`drop`)."""
        ...

    def caught_up(self, population: Population) -> None:
        """Hear that the past is told; what follows is new."""
        ...

    def close(self) -> None:
        """Finish; the search ended or was stopped."""
        ...


class Ledger:
    """Opens a search's folder, creating it if new: replays its log, then takes scores and drops one by one.

    Where the rule's explorer asks for proposals, each is made, written and told right after the record that called for
    it. A search that was killed in between makes it when it is opened, from the same log, so it is the same.

    Args:
        folder: the search's folder.
        rule: used for a new search; a search that has a log keeps the rule it began with.
        observers: hear the past first (`scored` and `perturbed` are replayed), then what happens.
        prolong: move the goal of a search that has a log to the rule's, if that is further.

    Raises:
        RunDirectoryError: another process is writing it, or its log is damaged.
        StorageError: it cannot be written. So may all methods.
    """

    def __init__(self, folder: Place, rule: Rule, observers: Sequence[Observer] = (), *, prolong: bool = False):
        self.folder, self.observers = folder, observers
        self.decided: Callable[[], object] = lambda: None  # called once a record counts, before slower observers
        self._log = open_log(folder)
        try:
            self._catch_up(rule, prolong)
        except BaseException:
            self._log.close()
            raise
        for observer in observers:
            observer.caught_up(self.population)

    def _catch_up(self, rule: Rule, prolong: bool) -> None:
        folder = self.folder
        self._sweep()
        records = self._log.records()
        if not records:
            records = [{"kind": "init", "format": FORMAT, "rule": rule.to_dict()}]
            self._log.append(records[0])
        self.population = begin(records, folder)
        self._proposer: Proposer | None = proposer_of(self.population.rule)
        lines = [self._lineage_line(found) for record in records[1:] for found in self._tell(record)]
        write_atomically(folder / LINEAGE, "".join(lines))
        self._whole_lineage = lines if isinstance(folder, ObjectPath) else []  # objects cannot grow
        self._propose()
        if prolong and rule.epochs > self.population.epochs:
            self.extend(rule.epochs)

    @property
    def path_of_log(self) -> Place:
        """The log's file."""
        return self._log.path

    def score(self, job: Job, metrics: Mapping[str, Any]) -> None:
        """Take the metrics of a finished interval, `score` among them; a second report of it is ignored.

        With a metric that is not finite it has failed: the networks have diverged.
        """
        wrong = {k: v for k, v in metrics.items() if isinstance(v, float) and not isfinite(v)}
        if wrong:
            self.fail(job, f"{job.state}: got {wrong}; expected finite metrics")
        elif not self.population.ended(job.member, job.generation):
            self._append(
                {
                    "kind": "score",
                    "member": job.member,
                    "generation": job.generation,
                    "score": metrics["score"],
                    "time": time.time(),
                    "metrics": dict(metrics),
                }
            )

    def fail(self, job: Job, reason: str) -> None:
        """Give an interval up; its member's place is filled by a copy of one that scored the same generation."""
        if self.population.ask(job.member) == job:
            record = {"kind": "fail", "member": job.member, "generation": job.generation}
            self._append(record | {"reason": reason, "time": time.time()})

    def drop(self, member: int, reason: str) -> None:
        """Give a member up for good; the others go on without it."""
        if member in self.population.live:
            self._append({"kind": "drop", "member": member, "reason": reason, "time": time.time()})

    def extend(self, epochs: int) -> None:
        """Move the goal."""
        self._append({"kind": "extend", "epochs": epochs, "time": time.time()})

    def collect(self) -> None:
        """Delete states that no coming interval can start from; those that a longer search would start from stay."""
        population = self.population
        if not population.live:
            return
        oldest = min(population.newest[member] for member in population.live)  # nobody copies from before this again
        needed = {state_name(m, g) for m, g in population.jobs if m in population.live and g >= oldest}
        needed |= {job.source for job in map(population.ask, population.live) if job is not None and job.source}
        needed |= {state_name(donor, generation) for generation, donor in population.pending.values()}
        for state in (self.folder / STATES).glob("[0-9]*-[0-9]*"):
            if state.name not in needed:
                delete_tree(state)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Close; what went wrong before is told, and not what then went wrong in closing."""
        try:
            self.close()
        except StorageError:
            if error is None:
                raise

    def close(self) -> None:
        """Close log and observers, all of them even if one fails."""
        with writing(self.folder), ExitStack() as stack:
            stack.callback(self._log.close)
            stack.callback(self._sweep)
            for observer in self.observers:
                stack.callback(observer.close)

    def _sweep(self) -> None:
        """Delete what slots wrote aside when they were killed; only while none is at work. Objects are whole."""
        if not isinstance(self.folder, ObjectPath):
            for torn in (self.folder / STATES).glob(".*"):
                delete_tree(torn)

    def _append(self, record: dict[str, Any]) -> None:
        self._take(record)
        self._propose()

    def _propose(self) -> None:
        """Complete the exploits that wait for a proposal; the lower member first, each knowing those before it."""
        while self.population.pending:
            assert self._proposer is not None, "who proposes nothing waits for no proposal"
            member = min(self.population.pending)
            generation, _ = self.population.pending[member]
            policies = policies_to_dict(self._proposer(self.population, member), self.population.rule.space)
            record = {"kind": "propose", "member": member, "generation": generation, "policies": policies}
            self._take(record | {"time": time.time()})

    def _take(self, record: dict[str, Any]) -> None:
        self._log.append(record)
        self.decided()
        found = self._tell(record)
        if found:
            self._write_lineage(list(map(self._lineage_line, found)))

    def _write_lineage(self, lines: list[str]) -> None:
        file = self.folder / LINEAGE
        if isinstance(file, ObjectPath):  # written anew: about 2 KB per perturbation, one request
            self._whole_lineage += lines
            write_atomically(file, "".join(self._whole_lineage))
            return
        with writing(file), open(file, "a", encoding="utf-8") as opened:
            opened.writelines(lines)

    def _tell(self, record: Mapping[str, Any]) -> list[Perturbation]:
        found = fold(self.population, record, self.folder)
        with writing(self.folder):
            for observer in self.observers:
                if record["kind"] == "score":
                    job = self.population.jobs[record["member"], record["generation"]]
                    observer.scored(job, record, self.population)
                elif record["kind"] in ("fail", "drop"):
                    observer.dropped(record, self.population)
                for perturbation in found:
                    observer.perturbed(perturbation, self.population)
        return found

    def _lineage_line(self, perturbation: Perturbation) -> str:
        return json.dumps(perturbation.to_dict(self.population.rule.space)) + "\n"
