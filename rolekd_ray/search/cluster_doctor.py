"""What a cluster can do, and what is missing on which node."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Group
from rich.markup import escape

from rolekd_ray.errors import RolekdError
from rolekd_ray.reporting.tables import plain_table, titled
from rolekd_ray.search import node_probe
from rolekd_ray.search.cluster import ray_session
from rolekd_ray.search.node_findings import Finding, Node, judge_clocks, judge_facts, judge_storage
from rolekd_ray.search.node_probe import NodeProbe, Reducer
from rolekd_ray.storage import Place

COMPARED = ("ray", "torch", "torchvision", "rolekd_ray")
ANSWER_SECONDS, REDUCE_SECONDS, JOIN_SECONDS = 120, 180, 900

ray.cloudpickle.register_pickle_by_value(node_probe)


def examine_cluster(storage: Place, nodes: int = 1) -> tuple[Group, list[str]]:
    """Check every node of the cluster that RAY_ADDRESS names, or of a private Ray on this machine.

    Args:
        storage: where runs would be written: a folder that all nodes share, or an object store.
        nodes: wait until so many nodes have joined.

    Returns:
        A table with one row per check and node, and the problems with what to do about each.

    Raises:
        RolekdError: fewer nodes joined, or a node does not answer.
    """
    with ray_session():
        findings = list(_examine(_wait_for(nodes), storage.absolute()))
    table = plain_table("check", "node", "found", "")
    for check, node, found, advice in findings:
        table.add_row(check, node, escape(found), "[red]wrong[/red]" if advice else "[green]ok[/green]")
    problems = [f"{f.node}: {f.check}: {f.found}; {f.advice}" for f in findings if f.advice]
    return titled("What this cluster can do", table), problems


def _wait_for(count: int, seconds: float = JOIN_SECONDS) -> list[Node]:
    end = time.monotonic() + seconds
    while len(nodes := _nodes()) < count:
        if time.monotonic() > end:
            names = ", ".join(node.name for node in nodes)
            raise RolekdError(f"cluster: got {len(nodes)} nodes after {seconds:g} s, {names}; expected {count}")
        time.sleep(1)
    return nodes


def _nodes() -> list[Node]:
    """Return the nodes that are alive, the one this runs on first: it is what the others are compared with."""
    here = ray.get_runtime_context().get_node_id()
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [_node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in alive]
    return sorted(nodes, key=lambda node: (node.id != here, node.name))


def _node(key: str, address: str, resources: Mapping[str, float]) -> Node:
    return Node(f"{address} {key[:4]}", key, address, resources.get("GPU", 0))


def _examine(nodes: list[Node], storage: Place) -> Iterator[Finding]:
    probes = {node: _start(NodeProbe, node) for node in nodes}
    try:
        _ask(nodes, [probe.ready.remote() for probe in probes.values()])
        asked = [probe.facts.remote(COMPARED, str(storage)) for probe in probes.values()]
        facts = dict(zip(nodes, _ask(nodes, asked)))
        yield from judge_facts(facts)
        yield from judge_clocks({node: _clock(node, probe) for node, probe in probes.items()})
        yield from _storage(probes, storage)
    finally:
        for probe in probes.values():
            ray.kill(probe)
    yield from _all_reduce(nodes)


def _start(kind: type, node: Node, *arguments: Any, gpus: int = 0) -> Any:
    here = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return ray.remote(kind).options(num_cpus=0, num_gpus=gpus, scheduling_strategy=here).remote(*arguments)


def _ask(nodes: Sequence[Node], answers: list[Any]) -> list[Any]:
    """Return the answers of all nodes; say which node gave none."""
    ray.wait(answers, num_returns=len(answers), timeout=ANSWER_SECONDS)
    return [_answer(node, answer) for node, answer in zip(nodes, answers)]


def _answer(node: Node, answer: Any) -> Any:
    try:
        return ray.get(answer, timeout=1)
    except (RayError, GetTimeoutError) as error:
        raise RolekdError(f"{node.name}: does not answer: {str(error).splitlines()[0]}") from error


# ---- Clocks


def _clock(node: Node, probe: Any, rounds: int = 5) -> tuple[float, float]:
    """Return how far a node's clock is ahead of ours, and by how much that may be wrong, both in seconds."""
    readings = []
    for _ in range(rounds):
        sent = time.time()
        there = _ask([node], [probe.clock.remote()])[0]
        received = time.time()
        readings.append(((received - sent) / 2, there - (sent + received) / 2))
    bound, skew = min(readings)  # the quickest answer says most
    return skew, bound


# ---- Storage


def _storage(probes: Mapping[Node, Any], storage: Place) -> Iterator[Finding]:
    """Have each node leave a mark, and every node look for all of them."""
    folder = str(storage / f".doctor-{uuid4().hex[:8]}")
    marks = {node: uuid4().hex for node in probes}
    nodes = list(probes)
    try:
        written = [probe.leave_mark.remote(folder, node.id, marks[node]) for node, probe in probes.items()]
        failures = dict(zip(nodes, _ask(nodes, written)))
        names = [node.id for node in nodes]
        seen = _ask(nodes, [probe.see_marks.remote(folder, names) for probe in probes.values()])
        yield from judge_storage(str(storage), marks, failures, dict(zip(nodes, seen)))
    finally:
        _ask(nodes, [probe.wipe.remote(folder) for probe in probes.values()])


# ---- Bandwidth


def _all_reduce(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Time an all-reduce over one process per node: by NCCL if every node has a GPU, else by gloo."""
    backend = "nccl" if all(node.gpus >= 1 for node in nodes) else "gloo"
    found, advice = ["one node: nothing to measure"], ""
    if len(nodes) > 1:
        try:
            found = [f"{rate / 1e6:.0f} MB/s" for rate in _bandwidths(nodes, backend)]
        except (RayError, GetTimeoutError) as error:
            late = isinstance(error, GetTimeoutError)
            found = [f"no end after {REDUCE_SECONDS} s" if late else str(error).strip().splitlines()[-1]] * len(nodes)
            advice = "expected open ports between the nodes, and a free GPU on each if they have any: see the firewall"
    for node, text in zip(nodes, found):
        yield Finding(f"all-reduce, {backend}", node.name, text, advice)


def _bandwidths(nodes: Sequence[Node], backend: str) -> list[float]:
    ranks = [_start(Reducer, node, node.address, gpus=int(backend == "nccl")) for node in nodes]
    try:
        port = ray.get(ranks[0].free_port.remote(), timeout=REDUCE_SECONDS)
        where = f"tcp://{nodes[0].address}:{port}"
        tasks = [rank.bandwidth.remote(backend, number, len(ranks), where) for number, rank in enumerate(ranks)]
        return ray.get(tasks, timeout=REDUCE_SECONDS)
    finally:
        for rank in ranks:
            ray.kill(rank)
