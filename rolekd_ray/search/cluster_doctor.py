"""What a cluster can do, and what is missing on which node."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
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
from rolekd_ray.search.doctor import LEAST_FILES, LEAST_FREE_BYTES
from rolekd_ray.search.node_probe import NodeProbe, Reducer

COMPARED = ("ray", "torch", "torchvision", "rolekd_ray")
MOST_SKEW_SECONDS = 5.0
"""Seconds of an interval are differences between two nodes' clocks; more than this also breaks S3's signatures."""
ANSWER_SECONDS, REDUCE_SECONDS, JOIN_SECONDS = 120, 180, 900

ray.cloudpickle.register_pickle_by_value(node_probe)


class Finding(NamedTuple):
    """One check of one node. `advice` is empty if all is well, else what to do about it."""

    check: str
    node: str
    found: str
    advice: str = ""


class Node(NamedTuple):
    """A node of the cluster, named by its address and the beginning of its id, for a machine may hold several."""

    name: str
    id: str
    address: str
    gpus: float


def examine_cluster(storage: Path, nodes: int = 1) -> tuple[Group, list[str]]:
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


def _examine(nodes: list[Node], storage: Path) -> Iterator[Finding]:
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


# ---- Versions, GPUs, limits, disks


def judge_facts(facts: Mapping[Node, Mapping[str, Any]]) -> Iterator[Finding]:
    """Compare what nodes say of themselves with the first of them, and with what a search needs."""
    reference = next(iter(facts.values()))["versions"]
    for package, wanted in reference.items():
        for node, fact in facts.items():
            found = fact["versions"][package]
            advice = (
                "" if found == wanted and found else f"expected {wanted or 'any'}, as on the first node: install it"
            )
            yield Finding(package, node.name, found or "not installed", advice)
    for node, fact in facts.items():
        yield _gpus(node, fact["gpus"])
    for node, fact in facts.items():
        soft, hard = fact["open_files"]
        advice = "" if soft >= LEAST_FILES else f"expected {LEAST_FILES}: `ulimit -n {LEAST_FILES}` before `ray start`"
        yield Finding("open files", node.name, f"{soft} (up to {hard})", advice)
    for node, fact in facts.items():
        free = fact["free_bytes"]
        advice = "" if free >= LEAST_FREE_BYTES else f"expected {LEAST_FREE_BYTES / 2**30:g} GiB: make room"
        yield Finding("free disk", node.name, f"{free / 2**30:.1f} GiB", advice)


def _gpus(node: Node, names: Sequence[str]) -> Finding:
    found = f"{len(names)}: {'; '.join(sorted(set(names)))}" if names else "none"
    advice = (
        "" if len(names) == node.gpus else f"expected the {node.gpus:g} that Ray counts: see --num-gpus, nvidia-smi"
    )
    return Finding("GPUs", node.name, found, advice)


# ---- Clocks


def _clock(node: Node, probe: Any, rounds: int = 5) -> tuple[float, float]:
    """Return how far a node's clock is ahead of ours, and by how much that may be wrong, both in seconds."""
    readings = []
    for _ in range(rounds):
        sent = time.time()
        there = _answer_of_clock(node, probe)
        received = time.time()
        readings.append(((received - sent) / 2, there - (sent + received) / 2))
    bound, skew = min(readings)  # the quickest answer says most
    return skew, bound


def _answer_of_clock(node: Node, probe: Any) -> float:
    return _ask([node], [probe.clock.remote()])[0]


def judge_clocks(clocks: Mapping[Node, tuple[float, float]]) -> Iterator[Finding]:
    """Say which clocks are wrong for certain, though the answer took its time."""
    for node, (skew, bound) in clocks.items():
        wrong = abs(skew) - bound > MOST_SKEW_SECONDS
        advice = f"expected at most {MOST_SKEW_SECONDS:g} s: start chrony or ntpd there" if wrong else ""
        yield Finding("clock", node.name, f"{skew:+.3f} s, within {bound:.3f} s", advice)


# ---- Storage


def _storage(probes: Mapping[Node, Any], storage: Path) -> Iterator[Finding]:
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


def judge_storage(
    storage: str,
    marks: Mapping[Node, str],
    failures: Mapping[Node, str | None],
    seen: Mapping[Node, Mapping[str, str | None]],
) -> Iterator[Finding]:
    """Say which nodes cannot write the storage, and which do not see what others wrote."""
    written = [node for node in marks if failures[node] is None]
    for node in marks:
        unseen = [other.name for other in written if seen[node][other.id] != marks[other]]
        if failures[node] is not None:
            advice = f"expected {storage} to be writable: mount it, give rights"
            yield Finding("storage", node.name, str(failures[node]), advice)
        elif unseen:
            advice = f"expected {storage} to be the same on all nodes: mount it everywhere"
            yield Finding("storage", node.name, f"does not see what {', '.join(unseen)} wrote", advice)
        else:
            yield Finding("storage", node.name, "writable, the same for all")


# ---- Bandwidth


def _all_reduce(nodes: Sequence[Node]) -> Iterator[Finding]:
    """Time an all-reduce over one process per node: by NCCL if every node has a GPU, else by gloo."""
    gpus = all(node.gpus >= 1 for node in nodes)
    check = f"all-reduce, {'NCCL' if gpus else 'gloo'}"
    if len(nodes) < 2:
        yield Finding(check, nodes[0].name, "one node: nothing to measure")
        return
    ranks = [_start(Reducer, node, node.address, gpus=int(gpus)) for node in nodes]
    try:
        port = ray.get(ranks[0].free_port.remote(), timeout=REDUCE_SECONDS)
        where = f"tcp://{nodes[0].address}:{port}"
        backend = "nccl" if gpus else "gloo"
        tasks = [rank.bandwidth.remote(backend, number, len(ranks), where) for number, rank in enumerate(ranks)]
        found, advice = [f"{b / 1e6:.0f} MB/s" for b in ray.get(tasks, timeout=REDUCE_SECONDS)], ""
    except GetTimeoutError:
        found = [f"no end after {REDUCE_SECONDS} s"] * len(nodes)
        advice = "expected free GPUs, and all ports open between the nodes: see what runs, and the firewall"
    except RayError as error:
        found = [str(error).strip().splitlines()[-1]] * len(nodes)
        advice = "expected all ports open between the nodes: see the firewall, and GLOO_SOCKET_IFNAME"
    finally:
        for rank in ranks:
            ray.kill(rank)
    for node, text in zip(nodes, found):
        yield Finding(check, node.name, text, advice)
