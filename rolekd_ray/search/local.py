"""The search in one process, without Ray: same seed, same scores, same lineage as the synchronous search on Ray."""

from rolekd_ray.errors import TrainingError
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.slots.interface import Worker


def run_local(ledger: Ledger, worker: Worker) -> None:
    """Train member after member until all live ones reached the goal; a member whose training fails is dropped."""
    population = ledger.population
    while population.live and not population.finished:
        for member in sorted(population.live):
            job = population.ask(member)
            if job is None:
                continue
            try:
                ledger.score(job, worker.train(job))
            except TrainingError as error:  # repeating it would give the same: an interval is a function of its job
                ledger.drop(member, str(error))
        ledger.collect()
