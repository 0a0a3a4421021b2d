"""What the autoscaler is asked for, and when it is not."""

import pytest
from ray.exceptions import RpcError

from rolekd_ray.config import load_settings
from rolekd_ray.errors import ConfigError
from rolekd_ray.search import cluster, demand
from rolekd_ray.search.cluster import slot_count
from rolekd_ray.search.demand import HOLD, Demand

GPU = load_settings("quickstart", ["slots.resources_per_worker.gpus=1", "slots.resources_per_worker.cpus=4"]).slots


@pytest.fixture
def asked(monkeypatch) -> list[list[dict]]:
    """Everything that was asked for, on a cluster."""
    requests: list[list[dict]] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(demand, "request_resources", lambda bundles: requests.append(bundles))
    return requests


def counts(demand: Demand, asked: list, fitting: int, times: int) -> list[int]:
    start = len(asked)
    for _ in range(times):
        demand.ask(fitting)
    return [len(bundles) for bundles in asked[start:]]


def test_what_is_lacking_is_asked_for_whole_and_in_ever_smaller_parts(asked):
    wanted = Demand(GPU, 8)
    assert counts(wanted, asked, 2, 4 * HOLD)[::HOLD] == [8, 5, 3, 8]
    assert asked[0] == [{"CPU": 4, "GPU": 1}] * 8
    assert counts(wanted, asked, 8, 3) == counts(wanted, asked, 20, 3) == [8, 8, 8], "no more than it could use"


@pytest.mark.parametrize("fitting", range(8))
def test_some_amount_fits_whatever_the_limit(asked, fitting):
    """The autoscaler brings nothing unless it may bring all: whatever its limit, some request is within."""
    found = counts(Demand(GPU, 8), asked, fitting, 8 * HOLD)
    assert all(any(fitting < count <= limit for count in found) for limit in range(fitting + 1, 9))


def test_it_lets_go_of_what_it_asked_for_and_of_nothing_else(asked):
    wanted = Demand(GPU, 1)
    wanted.let_go()
    assert not asked, "the request of another search"
    wanted.ask(0)
    wanted.let_go()
    assert asked == [[{"CPU": 4, "GPU": 1}], []]


def test_a_private_ray_is_not_asked(asked, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS")
    wanted = Demand(GPU, 4)
    wanted.ask(1)
    wanted.let_go()
    assert not asked


def test_a_cluster_that_does_not_answer_stops_nothing(asked, monkeypatch, caplog):
    def refuse(bundles):
        raise RpcError("no route", rpc_code=14)

    monkeypatch.setattr(demand, "request_resources", refuse)
    Demand(GPU, 4).ask(1)
    assert "cannot ask the cluster for more nodes: no route" in caplog.text


@pytest.mark.parametrize("address, hint", [("10.0.0.1:6379", True), ("local", False)])
def test_who_refuses_a_cluster_that_could_grow_says_what_to_do(monkeypatch, address, hint):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4}}])
    with pytest.raises(ConfigError, match="expected at most 0, for the nodes have 4 CPUs and 0 GPUs") as error:
        slot_count(GPU, 4)
    assert ("min_workers" in str(error.value)) == hint
