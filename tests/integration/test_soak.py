"""Hundreds of generations under random kills: the outcome is that of one process, and nothing grows that should not.

python tests/integration/test_soak.py [GENERATIONS]
"""

import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from threading import Timer

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from ray_helpers import (  # noqa: E402
    NoOpWorker,
    descendants,
    descriptors,
    facts,
    lineage,
    own_megabytes,
    processes,
    rule,
    tiny_settings,
)  # fmt: skip

from rolekd_ray.policy.population import Population  # noqa: E402
from rolekd_ray.search.cluster import ray_session  # noqa: E402
from rolekd_ray.search.ledger import Ledger, Observer  # noqa: E402
from rolekd_ray.search.local import run_local  # noqa: E402
from rolekd_ray.search.tune_search import run_on_ray  # noqa: E402

MEMBERS, GENERATIONS, SEED = 4, 200, 0
KINDS = ("ray::Slot", "ray::Member", "ray::Slot", "ray::Dispatcher")
LOOKS = (0.25, 0.5, 1.0)
DISPATCHER_LIVES_FROM = 0.4
KILL_EVERY_SCORES = 4, 20
"""Counted in scores, for a slot takes seconds to come back: with a kill a second a search hardly gets on."""

BY_DESIGN = ("log.jsonl", "lineage.jsonl", "tune", "states")
"""Grow by a record per score or perturbation; states have a bound of their own."""

MEGABYTES_PER_GENERATION, DESCRIPTORS, PROCESSES = 0.1, 8, 3
"""What the driver, and the dispatcher, may grow by between the first look and the last.

By design 13 KB for four members: policies that were ever decided, the lineage's lines. With kills it was 44 KB.
Descriptors and processes come and go with what is killed.
"""


class Watcher(Observer):
    """Looks at memory, processes, descriptors and files as the search gets on."""

    def __init__(self, folder: Path, members: int, generations: int):
        self.folder = folder
        self.at = {int(members * generations * share) for share in LOOKS}
        self.scores, self.most_states, self.looks = 0, 0, []
        self.started = time.monotonic()

    def scored(self, job, record, population: Population):
        self.scores += 1
        self.most_states = max(self.most_states, len(list((self.folder / "states").glob("[0-9]*"))))
        if self.scores in self.at:
            self.looks.append(self.look())
            print(f"{time.monotonic() - self.started:6.0f} s: {self.looks[-1]}", flush=True)

    def look(self) -> dict[str, float]:
        """Numbers that may, or may not, grow."""
        pid = os.getpid()
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        sizes = {file: file.stat().st_size for file in files if file.exists()}
        tune = [file for file in sizes if "tune" in file.parts]
        found = {
            "scores": self.scores,
            "driver MB": own_megabytes(pid),
            "driver descriptors": descriptors(pid),
            "processes": len(descendants(pid)),
            "log KB": (self.folder / "log.jsonl").stat().st_size / 1000,
            "lineage KB": (self.folder / "lineage.jsonl").stat().st_size / 1000,
            "tune KB": sum(sizes[file] for file in tune) / 1000,
            "tune files": len(tune),
            "other files": len(
                [file for file in sizes if not {*file.relative_to(self.folder).parts} & {*BY_DESIGN, "states"}]
            ),
            "states": len(list((self.folder / "states").glob("[0-9]*"))),
        }
        for dispatcher in processes("ray::Dispatcher"):  # none while it is being started again
            found |= {"dispatcher MB": own_megabytes(dispatcher), "dispatcher descriptors": descriptors(dispatcher)}
        return found


class Killer(Observer):
    """Kills something every few scores; the dispatcher only in the first part, for a new one holds nothing."""

    def __init__(self, seed: int, scores: int):
        self.rng, self.scores, self.all_scores = random.Random(seed), 0, scores
        self.next, self.killed = 0, dict.fromkeys(KINDS, 0)

    def scored(self, job, record, population):
        self.scores += 1
        if self.scores >= self.next:
            self.next = self.scores + self.rng.randint(*KILL_EVERY_SCORES)
            kinds = KINDS if self.scores < DISPATCHER_LIVES_FROM * self.all_scores else KINDS[:-1]
            Timer(self.rng.uniform(0, 0.1), self.kill, [self.rng.choice(kinds)]).start()

    def kill(self, kind: str) -> None:
        found = sorted(processes(kind))
        if found:
            os.kill(self.rng.choice(found), signal.SIGKILL)
            self.killed[kind] += 1


class Napping(NoOpWorker):
    """Long enough that kills hit intervals."""

    def train(self, job):
        time.sleep(0.02)
        return super().train(job)


def soak(folder: Path, generations: int) -> tuple[Watcher, Killer, float]:
    """Search under kills; return who watched, who killed, and seconds."""
    goal = rule(population_size=MEMBERS, epochs=3 * generations)
    folder.mkdir()
    watcher = Watcher(folder, MEMBERS, generations)
    killer = Killer(SEED, MEMBERS * generations)
    ledger = Ledger(folder, goal, [watcher, killer])
    settings = tiny_settings(f"search.population_size={MEMBERS}", "search.max_failures=100000")
    started = time.monotonic()
    run_on_ray(ledger, partial(Napping, folder / "states"), search=settings.search, slots=settings.slots)
    ledger.close()
    return watcher, killer, time.monotonic() - started


def in_one_process(folder: Path, generations: int) -> Path:
    folder.mkdir()
    ledger = Ledger(folder, rule(population_size=MEMBERS, epochs=3 * generations))
    run_local(ledger, NoOpWorker(folder / "states"))
    ledger.close()
    return folder


def report(folder: Path, generations: int = GENERATIONS) -> None:
    watcher, killer, seconds = soak(folder / "ray", generations)
    reference = in_one_process(folder / "reference", generations)
    print(f"\n{MEMBERS} members, {generations} generations, {seconds:.0f} s, killed {killer.killed}")
    first, middle, last = watcher.looks
    for name in last:
        print(f"{name:24}" + "".join(f"{look.get(name, float('nan')):12.1f}" for look in watcher.looks))
    between = (last["scores"] - first["scores"]) / MEMBERS
    for name in ("log KB", "lineage KB", "tune KB", "tune files", "driver MB"):
        print(f"{name:24}{(last[name] - first[name]) / between:12.3f} a generation")
    assert facts(folder / "ray") == facts(reference)
    assert sorted(lineage(folder / "ray")) == sorted(lineage(reference)) and lineage(reference)
    assert sum(killer.killed.values()) >= generations / 8, "too few kills to mean anything"
    assert watcher.most_states <= 2 * MEMBERS
    assert last["states"] <= 2 * MEMBERS and last["other files"] == first["other files"]
    assert last["driver MB"] - first["driver MB"] <= MEGABYTES_PER_GENERATION * between
    assert last["driver descriptors"] - first["driver descriptors"] <= DESCRIPTORS
    assert last["processes"] - first["processes"] <= PROCESSES
    assert last["dispatcher descriptors"] - middle["dispatcher descriptors"] <= DESCRIPTORS
    assert last["dispatcher MB"] - middle["dispatcher MB"] <= MEGABYTES_PER_GENERATION * generations / 2


@pytest.mark.slow
def test_hundreds_of_generations_under_kills(ray, tmp_path, capsys):
    with capsys.disabled():
        report(tmp_path)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as made, ray_session():
        report(Path(made), *map(int, sys.argv[1:]))
