"""The search in one process, without Ray: same seed, same scores, same lineage as the synchronous search on Ray."""

from rolekd_ray.errors import TrainingError
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.slots.interface import Worker


def run_local(ledger: Ledger, worker: Worker) -> None:
    """Train interval after interval until all live members reached the goal; one whose training fails is replaced.

    The least advanced member goes first, so a search that is gone on with has the order of one never stopped.
    `search.max_failures` is for processes and machines that fail; in one process there is nothing it could mend, so
    any other error ends the search, and `resume` repeats the interval.
    """
    population = ledger.population
    while jobs := [job for member in population.live if (job := population.ask(member)) is not None]:
        job = min(jobs, key=lambda job: (job.generation, job.member))
        try:
            ledger.score(job, worker.train(job))
        except TrainingError as error:  # repeating it would give the same: an interval is a function of its job
            ledger.fail(job, str(error))
        ledger.collect()
