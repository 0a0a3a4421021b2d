"""A whole search on Ray whose intervals train nothing: what is left is orchestration. Prints its facts as JSON.

python tests/integration/orchestration_run.py FOLDER BYTES MEMBERS GENERATIONS
"""

import time

STARTED = time.time()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

from ray_helpers import NoOpWorker, processes, proportional_megabytes, rule, tiny_settings  # noqa: E402

from rolekd_ray.search.cluster import ray_session  # noqa: E402
from rolekd_ray.search.ledger import Ledger, Observer  # noqa: E402
from rolekd_ray.search.tune_search import run_on_ray  # noqa: E402


def free_megabytes() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 1024


class Facts(Observer):
    """Keeps every score, and looks at the processes once all members have scored and again near the end."""

    def __init__(self, members: int, generations: int):
        self.rows, self.looks = [], {}
        self.when = {members: "first", members * (generations - 1): "last"}

    def scored(self, job, record, population):
        self.rows.append({"generation": job.generation, "donor": job.donor, "member": job.member} | record["metrics"])
        if len(self.rows) in self.when:
            self.looks[self.when[len(self.rows)]] = {
                "time": time.time(),
                "slots": sorted(processes("ray::Slot")),
                "members": {pid: proportional_megabytes(pid) for pid in sorted(processes("ray::Member"))},
                "driver": proportional_megabytes(os.getpid()),
                "dispatcher": sum(map(proportional_megabytes, processes("ray::Dispatcher"))),
                "free": free_megabytes(),
            }


def main() -> None:
    folder, size, members, generations = Path(sys.argv[1]), *map(int, sys.argv[2:])
    facts = Facts(members, generations)
    ledger = Ledger(folder, rule(population_size=members, epochs=3 * generations), [facts])
    settings = tiny_settings(f"search.population_size={members}")
    with ray_session():
        run_on_ray(ledger, partial(NoOpWorker, folder / "states", size), search=settings.search, slots=settings.slots)
    ledger.close()
    print(json.dumps({"started": STARTED, "rows": facts.rows, "looks": facts.looks, "ended": time.time()}))


if __name__ == "__main__":
    main()
