"""Our Tune scheduler: writes scores into the ledger, lets the population rule decide, and never pauses a trial."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from rolekd_ray.errors import RolekdError
from rolekd_ray.policy.jobs import Job, policies_to_dict
from rolekd_ray.search.ledger import Ledger

log = logging.getLogger(__name__)


class PopulationScheduler(FIFOScheduler):
    """Answers CONTINUE at once: what a trial trains next, it asks the dispatcher, which reads the same log.

    Tune's pausing PBT relaunches actors, can end trials early without an error and hangs on synchronous restore; here
    nothing is ever paused, and Tune's own state is not needed to go on after a crash.
    """

    def __init__(self, ledger: Ledger, dispatcher: Any, max_failures: int):
        super().__init__()
        self.max_failures = max_failures
        self.ledger = ledger
        ledger.decided = lambda: dispatcher.refresh.remote()  # it reads the log and makes the same decision
        self.trials: dict[int, Any] = {}
        self.deaths: Counter[str] = Counter()  # of members' trial processes, per interval
        self.error: RolekdError | None = None
        """What stopped the search, such as a full disk: Tune would pass on its text alone."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler now and then; ours holds open files, and the log is all it needs."""
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Remember which trial is which member."""
        super().on_trial_add(tune_controller, trial)
        self.trials[trial.config["member"]] = trial

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Take a row into the log; the rule's decisions follow from that."""
        with self._noting_errors():
            return self._take(trial, result)

    def _take(self, trial: Any, result: dict[str, Any]) -> str:
        population, generation = self.ledger.population, result["generation"]
        job, before = population.jobs[trial.config["member"], generation], dict(population.newest)
        if "failed" in result:
            self.ledger.fail(job, result["failed"])
        else:
            # Tune hands rows over flattened: {"metrics": {"score": …}} arrives as {"metrics/score": …}
            metrics = {k.removeprefix("metrics/"): value for k, value in result.items() if k.startswith("metrics/")}
            self.ledger.score(job, metrics)
        self._show_changes(before)
        # Not by `done` in the row or a stop criterion: Tune would then not ask us, and the score would be lost
        ended = generation + 1 >= population.generations or job.member not in population.live
        return TrialScheduler.STOP if ended else TrialScheduler.CONTINUE

    def _show_changes(self, before: dict[int, int]) -> None:
        """Let Tune's tables show what members train from now on, and delete the states that this made superfluous."""
        population = self.ledger.population
        changed = [m for m in population.live if population.newest[m] != before[m]]
        for other in filter(self.trials.__contains__, changed):
            job = population.jobs[other, population.newest[other]]
            policies = policies_to_dict(job.policies, population.rule.space)
            self.trials[other].set_config({**self.trials[other].config, "policies": policies, "donor": job.donor})
        if changed:
            self.ledger.collect()

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Count the deaths of a proxy, which Tune restarts: those during one interval are failures of its member."""
        member = trial.config["member"]
        with self._noting_errors():
            if not trial.should_recover():  # Tune is asked to start proxies again without end; else nobody would report
                self.ledger.drop(member, "Ray Tune did not start its trial process again")
                return
            job = self.ledger.population.ask(member)
            if job is not None:  # else the member waits for others, and a new proxy does so as well
                self._count_death(job)

    def _count_death(self, job: Job) -> None:
        self.deaths[job.state] += 1
        count, most = self.deaths[job.state], self.max_failures + 1
        log.warning("%s: the member's trial process died (%d of %d)", job.state, count, most)
        if count == most:
            before = dict(self.ledger.population.newest)
            self.ledger.fail(job, f"{job.state}: its trial process died {count} times")
            self._show_changes(before)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except RolekdError as error:
            self.error = error
            raise
