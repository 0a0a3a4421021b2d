"""What the tests with a real Ray share: a small real search, a worker that trains nothing, finding processes."""

import hashlib
import os
from pathlib import Path
from typing import Any

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.policy.population import Job, Rule
from rolekd_ray.roles import Role
from rolekd_ray.search.log import read_log
from rolekd_ray.search.population_search import rule_of
from rolekd_ray.training.checkpoint import load_checkpoint

TINY = (
    "data.train=60",
    "data.validation=60",
    "final.train=60",
    "teacher.model=resnet8",
    "training.batch_size=30",
    "training.precision=float32",  # bfloat16 would round a group's sums otherwise than one worker's, and turn scores
    "search.protocol=coevolve",
    "search.population_size=4",
    "search.epochs=4",
    "search.perturbation_interval_epochs=1",
    "search.initial_policies=random",
)
BOTH = (Role.TEACHER, Role.STUDENT)


def tiny_settings(*overrides: str) -> Settings:
    """A real search on a few digits: 4 members, 4 generations, both roles."""
    return load_settings("quickstart", [*TINY, *overrides])


def rule(**overrides: Any) -> Rule:
    """A rule for searches that train nothing."""
    settings = load_settings("cifar10_pba", [f"search.{key}={value}" for key, value in overrides.items()])
    return rule_of(settings, BOTH)


class NoOpWorker:
    """Trains nothing: reads the source, writes a state of `size` bytes, scores by a hash of the job's state."""

    def __init__(self, states: Path, size: int = 4, sharding: Any = None):
        import torch

        self.states, self.weights, self.sharding = states, torch.zeros(max(1, size // 4)), sharding

    def train(self, job: Job) -> dict[str, Any]:
        import time

        from rolekd_ray.training.checkpoint import save_checkpoint

        started = time.time()
        if job.source is not None:
            load_checkpoint(self.states / job.source)
        loaded = time.time()
        if self.sharding is None or self.sharding.rank == 0:
            save_checkpoint(self.states / job.state, {"weights": self.weights}, {"job": job.member})
        digest = hashlib.sha256(job.state.encode()).hexdigest()
        return {
            "score": int(digest[:8], 16) / 2**32,
            "started": started,
            "load_seconds": loaded - started,
            "ended": time.time(),
            "pid": os.getpid(),
        }


def facts(folder: Path) -> dict[tuple[int, int], float]:
    """All scores of a search, by member and generation."""
    return {(r["member"], r["generation"]): r["score"] for r in read_log(folder) if r["kind"] == "score"}


def lineage(folder: Path) -> list[str]:
    """The lineage file's lines; in asynchronous searches their order is the order of arrival."""
    return (folder / "lineage.jsonl").read_text().splitlines()


def weights(folder: Path) -> dict[str, Any]:
    """All tensors of the states that are left, by state."""
    return {state.name: load_checkpoint(state)[0] for state in (folder / "states").iterdir()}


def same_tree(one: Any, other: Any) -> bool:
    """Whether two checkpoint trees are equal to the last bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tree(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_tree, one, other))
    return one == other


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below one, by process id."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
                names[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue  # ended meanwhile
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier and child not in found}
        found |= {child: names[child] for child in frontier}
    return found


def processes(name: str) -> set[int]:
    """Ids of Ray's processes of a kind (`ray::Slot`, `ray::Member`, `ray::Dispatcher`) below this one."""
    return {pid for pid, command in descendants(os.getpid()).items() if command.startswith(name)}


def proportional_megabytes(pid: int) -> float:
    """Memory of a process, what it shares with others divided among them (PSS)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def own_megabytes(pid: int) -> float:
    """Memory that would be free if the process ended (USS); does not depend on how many others there are."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:"))) / 1024


def descriptors(pid: int) -> int:
    """How many files, sockets and pipes a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
