"""What the answers of a cluster's nodes mean: which node is wrong, and what to do about it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rolekd_ray.search.doctor import LEAST_FILES, LEAST_FREE_BYTES

MOST_SKEW_SECONDS = 5.0
"""Seconds of an interval are differences between two nodes' clocks; more than this also breaks S3's signatures."""


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


def judge_facts(facts: Mapping[Node, Mapping[str, Any]]) -> Iterator[Finding]:
    """Compare what nodes say of themselves with the first of them, and with what a search needs."""
    reference = next(iter(facts.values()))["versions"]
    for package, wanted in reference.items():
        for node, fact in facts.items():
            yield _version(node, package, fact["versions"][package], wanted)
    for judge in (_gpus, _open_files, _free_disk):
        for node, fact in facts.items():
            yield judge(node, fact)


def _advice(sound: bool, text: str) -> str:
    return "" if sound else text


def _version(node: Node, package: str, found: str | None, wanted: str | None) -> Finding:
    sound = found is not None and found == wanted
    advice = f"expected {wanted or 'an installed one'}, as on the first node: install it by constraints.txt"
    return Finding(package, node.name, found or "not installed", _advice(sound, advice))


def _gpus(node: Node, fact: Mapping[str, Any]) -> Finding:
    names: Sequence[str] = fact["gpus"]
    found = f"{len(names)}: {'; '.join(sorted(set(names)))}" if names else "none"
    advice = f"expected the {node.gpus:g} that Ray counts: see nvidia-smi, and --num-gpus of `ray start`"
    return Finding("GPUs", node.name, found, _advice(len(names) == node.gpus, advice))


def _open_files(node: Node, fact: Mapping[str, Any]) -> Finding:
    soft, hard = fact["open_files"]
    advice = f"expected {LEAST_FILES}: `ulimit -n {LEAST_FILES}` before `ray start`"
    return Finding("open files", node.name, f"{soft} (up to {hard})", _advice(soft >= LEAST_FILES, advice))


def _free_disk(node: Node, fact: Mapping[str, Any]) -> Finding:
    free = fact["free_bytes"]
    advice = f"expected {LEAST_FREE_BYTES / 2**30:g} GiB: make room"
    return Finding("free disk", node.name, f"{free / 2**30:.1f} GiB", _advice(free >= LEAST_FREE_BYTES, advice))


def judge_clocks(clocks: Mapping[Node, tuple[float, float]]) -> Iterator[Finding]:
    """Say which clocks are wrong for certain, though the answer took its time."""
    for node, (skew, bound) in clocks.items():
        sound = abs(skew) - bound <= MOST_SKEW_SECONDS
        advice = f"expected at most {MOST_SKEW_SECONDS:g} s: start chrony or ntpd there"
        yield Finding("clock", node.name, f"{skew:+.3f} s, within {bound:.3f} s", _advice(sound, advice))


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
