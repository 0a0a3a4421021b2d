"""Slots of `[fewest, most]` workers on a cluster that loses a node and gets another."""

import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from ray_helpers import BOTH, assert_as_one_worker, processes, tiny_settings

from rolekd_ray.search.cluster import ray_session
from rolekd_ray.search.ledger import Observer
from rolekd_ray.search.population_search import search_population


class Witness(Observer):
    """Notes when each score came and how many workers there were; acts after some of them."""

    def __init__(self, **acts):
        self.acts, self.workers, self.acted, self.came = acts, [], {}, []

    def scored(self, job, record, population):
        self.workers.append(len(processes("ray::RayTrainWorker")))
        self.came.append(time.monotonic())
        act = self.acts.get(f"after_{len(self.came)}")
        if act is not None:
            self.acted[len(self.came)] = time.monotonic()
            act()


@pytest.mark.slow
def test_a_group_goes_on_with_fewer_workers_when_it_loses_a_node_and_grows_when_one_joins(
    reference, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        witness = Witness(
            after_6=lambda: cluster.remove_node(second, allow_graceful=False),
            after_10=lambda: cluster.add_node(num_cpus=1),
        )
        with ray_session():
            _, population = search_population(tmp_path, tiny_settings("slots.workers=[1,2]"), BOTH, observers=[witness])
    finally:
        cluster.shutdown()
    for number, when in witness.acted.items():
        later = [round(came - when, 1) for came in witness.came[number:]]
        print(f"\nafter score {number}: the next ones after {later} s, by {witness.workers[number:]} workers")
    assert population.finished and population.live == {0, 1, 2, 3}
    assert set(witness.workers[:6]) == {2} and set(witness.workers[7:10]) == {1} and witness.workers[-1] == 2
    assert_as_one_worker(tmp_path, reference)
    assert witness.came[6] - witness.acted[6] <= 60
