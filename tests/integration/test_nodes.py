"""Nodes that join and leave while a search runs; apart from tests whose Ray this process would still hold."""

import time
from functools import partial
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray_helpers import NoOpWorker, facts, rule, tiny_settings

from rolekd_ray.search.cluster import ray_session
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.tune_search import run_on_ray


class Steady(NoOpWorker):
    """An interval takes a quarter of a second."""

    def train(self, job):
        time.sleep(0.25)
        return super().train(job)


class Joiner:
    """Adds a node after the third score, and notes who trained."""

    def __init__(self, join):
        self.join, self.pids = join, []

    def scored(self, job, record, population):
        self.pids.append(record["metrics"]["pid"])
        if len(self.pids) == 3:
            self.join()

    def perturbed(self, perturbation, population): ...
    def dropped(self, record, population): ...
    def caught_up(self, population): ...
    def close(self): ...


@pytest.mark.slow
def test_a_node_that_joins_brings_a_slot_and_one_that_leaves_takes_nothing_along(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = []
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with ray_session():
            joiner = Joiner(lambda: nodes.append(cluster.add_node(num_cpus=1)))
            ledger = Ledger(tmp_path, rule(population_size=4, epochs=3 * 60), [joiner])
            settings = tiny_settings()

            class Leaver(Joiner):
                def scored(self, job, record, population):
                    super().scored(job, record, population)
                    if len(self.pids) == 180:
                        cluster.remove_node(nodes[0], allow_graceful=False)

            ledger.observers = [joiner, leaver := Leaver(lambda: None)]
            run_on_ray(ledger, partial(Steady, tmp_path / "states"), search=settings.search, slots=settings.slots)
            ledger.close()
            assert ledger.population.finished and len(facts(tmp_path)) == 240
            assert len(set(leaver.pids[:3])) == 1 and len(set(leaver.pids[:180])) == 2
            assert len(set(leaver.pids[-20:])) == 1
    finally:
        cluster.shutdown()
