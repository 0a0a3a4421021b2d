"""Our Tune scheduler: writes scores into the ledger, lets the population rule decide, and never pauses a trial."""

from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from rolekd_ray.errors import RolekdError
from rolekd_ray.policy.population import policies_to_dict
from rolekd_ray.search.ledger import Ledger


class PopulationScheduler(FIFOScheduler):
    """Answers CONTINUE at once: what a trial trains next, it asks the dispatcher, which reads the same log.

    Tune's pausing PBT relaunches actors, can end trials early without an error and hangs on synchronous restore; here
    nothing is ever paused, and Tune's own state is not needed to go on after a crash.
    """

    def __init__(self, ledger: Ledger, dispatcher: Any):
        super().__init__()
        self.ledger = ledger
        ledger.decided = lambda: dispatcher.refresh.remote()  # it reads the log and makes the same decision
        self.trials: dict[int, Any] = {}
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
        try:
            return self._take(trial, result)
        except RolekdError as error:
            self.error = error
            raise

    def _take(self, trial: Any, result: dict[str, Any]) -> str:
        member, population = trial.config["member"], self.ledger.population
        if "failed" in result:
            self.ledger.drop(member, result["failed"])
            return TrialScheduler.STOP
        generation = result["generation"]
        before = dict(population.newest)
        # Tune hands rows over flattened: {"metrics": {"score": …}} arrives as {"metrics/score": …}
        metrics = {key.removeprefix("metrics/"): value for key, value in result.items() if key.startswith("metrics/")}
        self.ledger.score(population.jobs[member, generation], metrics)
        changed = [m for m in population.live if population.newest[m] != before[m]]
        for other in filter(self.trials.__contains__, changed):
            job = population.jobs[other, population.newest[other]]
            policies = policies_to_dict(job.policies, population.rule.space)
            self.trials[other].set_config({**self.trials[other].config, "policies": policies, "donor": job.donor})
        if changed:
            self.ledger.collect()
        # Not by `done` in the row or a stop criterion: Tune would then not ask us, and the score would be lost
        return TrialScheduler.STOP if generation + 1 >= population.generations else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Drop a member whose proxy Tune gives up; Tune also calls this when it is about to restart the proxy."""
        if not trial.should_recover():
            self.ledger.drop(trial.config["member"], "its trial process died more often than max_failures allows")
