"""A search whose intervals train nothing, on the cluster that RAY_ADDRESS names. Prints its facts as JSON.

python tests/integration/growing_search.py FOLDER GENERATIONS [SETTING=VALUE …]
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import ray
from ray_helpers import NoOpWorker, facts, rule, tiny_settings

from rolekd_ray.search.cluster import ray_session
from rolekd_ray.search.ledger import Ledger, Observer
from rolekd_ray.search.tune_search import run_on_ray


class Steady(NoOpWorker):
    """An interval takes a quarter of a second."""

    def train(self, job):
        time.sleep(0.25)
        return super().train(job) | {"node": ray.get_runtime_context().get_node_id()}


class Joined(Observer):
    """Notes when a node first trained something, in seconds from the first score."""

    def __init__(self):
        self.seconds, self.started = {}, None

    def scored(self, job, record, population):
        self.started = self.started or time.monotonic()
        self.seconds.setdefault(record["metrics"]["node"], time.monotonic() - self.started)


def main() -> None:
    folder, generations = Path(sys.argv[1]), int(sys.argv[2])
    joined = Joined()
    ledger = Ledger(folder, rule(population_size=4, epochs=3 * generations), [joined])
    settings = tiny_settings(*sys.argv[3:])
    with ray_session():
        before = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        run_on_ray(ledger, partial(Steady, folder / "states"), search=settings.search, slots=settings.slots)
        after = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    ledger.close()
    print(json.dumps({"before": before, "after": after, "seconds": list(joined.seconds.values()), "pid": os.getpid(),
                      "scores": len(facts(folder)), "finished": ledger.population.finished}))  # fmt: skip


if __name__ == "__main__":
    main()
