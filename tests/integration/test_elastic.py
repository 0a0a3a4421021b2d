"""Slots of `[fewest, most]` workers on a cluster that loses a node and gets another."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray as ray_api
from ray.cluster_utils import Cluster
from ray_helpers import BOTH, assert_as_one_worker, descendants, tiny_settings

from rolekd_ray.search.cluster import ray_session
from rolekd_ray.search.ledger import Observer
from rolekd_ray.search.population_search import search_population


class Outage(Observer):
    """Takes a node away after the fourth score, gives another after two scores by one worker; notes what happens."""

    def __init__(self, cluster, node):
        self.cluster, self.node = cluster, node
        self.workers: list[int] = []
        self.came: list[float] = []
        self.lost = self.joined = 0.0

    def scored(self, job, record, population):
        groups = ray_api.util.placement_group_table().values()
        self.workers.append(max(len(group["bundles"]) for group in groups if group["state"] == "CREATED"))
        self.came.append(time.monotonic())
        if len(self.came) == 4:
            self.lost = time.monotonic()
            self.lose()
        if self.workers.count(1) == 2 and not self.joined:
            self.joined = time.monotonic()
            self.cluster.add_node(num_cpus=1)

    def lose(self):
        """As by a power cut: no process of the node lives on; without its raylet, workers would for a second."""
        raylet = self.node.all_processes["raylet"][0].process.pid
        below = descendants(raylet)
        self.cluster.remove_node(self.node, allow_graceful=False)
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.mark.slow
def test_a_group_goes_on_with_fewer_workers_when_it_loses_a_node_and_grows_when_one_joins(
    reference, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        outage = Outage(cluster, cluster.add_node(num_cpus=1))
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with ray_session():
            _, population = search_population(tmp_path, tiny_settings("slots.workers=[1,2]"), BOTH, observers=[outage])
    finally:
        cluster.shutdown()
    smaller, grown = outage.workers.index(1), len(outage.workers) - outage.workers[::-1].index(1)
    print(
        f"\nby so many workers: {outage.workers}; from a node's loss to the next score by one worker "
        f"{outage.came[smaller] - outage.lost:.1f} s; from a node's joining to the next by two "
        f"{outage.came[grown] - outage.joined:.1f} s"
    )
    assert population.finished and population.live == {0, 1, 2, 3}
    assert outage.workers[:4] == [2] * 4 and outage.workers[-1] == 2
    assert_as_one_worker(tmp_path, reference)
    assert outage.came[smaller] - outage.lost <= 60 and outage.came[grown] - outage.joined <= 60
