"""Many small searches on Ray, in each of which something is killed at a random moment; all must end as if nothing had.

python tests/integration/random_kills.py [COUNT [FIRST_SEED [KIND]]]

A seed says what is killed and when, so a failure can be run again. Trainings are empty (an interval sleeps a tenth of a
second). Compared with the search of one process that nothing happened to: lineage, scores, the states that are left.
Kinds that leave the driver alive share one Ray; a driver that was killed is followed by another that goes on.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from threading import Event, Thread

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])

from ray_helpers import NoOpWorker, descendants, facts, lineage, rule, same_tree, tiny_settings, weights  # noqa: E402

from rolekd_ray.search.cluster import ray_session  # noqa: E402
from rolekd_ray.search.ledger import Ledger, Observer  # noqa: E402
from rolekd_ray.search.local import run_local  # noqa: E402
from rolekd_ray.search.tune_search import run_on_ray  # noqa: E402
from rolekd_ray.training.checkpoint import load_checkpoint  # noqa: E402

MEMBERS, GENERATIONS, INTERVAL_SECONDS = 4, 6, 0.1
MOST_SECONDS = 90
"""A search that takes longer has lost its way."""

WITHIN = ("slot", "all slots", "trial", "all trials", "dispatcher", "everything but the driver's")
WHOLE = ("driver", "driver and its Ray", "raylet")


class Chained(NoOpWorker):
    """Leaves a state that depends on all before it; takes a moment, or kills would nearly always hit something else."""

    def train(self, job):
        import torch

        time.sleep(INTERVAL_SECONDS)
        before = "" if job.source is None else load_checkpoint(self.states / job.source)[0]["weights"].tolist()
        digest = hashlib.sha256(repr((before, job.state, job.policies)).encode()).digest()
        self.weights = torch.tensor(list(digest), dtype=torch.uint8)
        return super().train(job)


def search(folder: Path, *observers: Observer) -> None:
    """Begin a search in this folder, or go on with the one that lies there."""
    ledger = Ledger(folder, rule(population_size=MEMBERS, epochs=3 * GENERATIONS), observers)
    settings = tiny_settings(f"search.population_size={MEMBERS}")
    try:
        run_on_ray(ledger, partial(Chained, folder / "states"), search=settings.search, slots=settings.slots)
        ledger.collect()
    finally:
        ledger.close()


def make_reference(folder: Path) -> Path:
    """The search that nothing happens to, in one process."""
    ledger = Ledger(folder, rule(population_size=MEMBERS, epochs=3 * GENERATIONS))
    run_local(ledger, Chained(folder / "states"))
    ledger.close()
    return folder


def differences(run: Path, reference: Path) -> list[str]:
    """What a search has otherwise than the one nothing happened to."""
    found, expected = weights(run), weights(reference)
    states = [name for name in found.keys() | expected.keys() if not same_tree(found.get(name), expected.get(name))]
    return [
        what
        for what, same in (
            ("scores", facts(run) == facts(reference)),
            ("lineage", sorted(lineage(run)) == sorted(lineage(reference)) and lineage(reference) != []),
            (f"states {sorted(states)}", not states),
        )
        if not same
    ]


def victims(kind: str, pid: int, rng: random.Random) -> list[int]:
    """Who is to be killed below a driver; may be nobody yet."""
    below = descendants(pid)
    named = {
        name: sorted(p for p, command in below.items() if command.startswith(f"ray::{name}"))
        for name in ("Slot", "Member", "Dispatcher")
    }
    match kind:
        case "slot" | "trial":
            found = named["Slot" if kind == "slot" else "Member"]
            return [rng.choice(found)] if found else []
        case "all slots":
            return named["Slot"]
        case "all trials":
            return named["Member"]
        case "dispatcher":
            return named["Dispatcher"]
        case "everything but the driver's":
            return [p for pids in named.values() for p in pids]
        case "raylet":
            return [p for p, command in below.items() if "raylet/raylet " in command]
        case "driver":
            return [pid]
        case "driver and its Ray":
            return [pid, *below]
    raise AssertionError(kind)


def kill(pids: list[int]) -> int:
    """SIGKILL; return how many were still there."""
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed


def moment(rng: random.Random, start_seconds: float) -> tuple[int, float]:
    """Draw (n, seconds after the n-th score); in a fifth of the runs n is 0: while processes are being started."""
    after = 0 if rng.random() < 0.2 else rng.randrange(1, MEMBERS * GENERATIONS - 2)
    return after, rng.uniform(0, 0.15 if after else start_seconds)


class Later(Observer):
    """Kills so many seconds after the n-th score."""

    def __init__(self, kind: str, rng: random.Random):
        self.kind, self.rng = kind, rng
        self.after, self.seconds = moment(rng, 6)
        self.scores, self.killed, self._due, self._over = 0, 0, Event(), Event()
        if self.after == 0:
            self._due.set()
        self._thread = Thread(target=self._wait, daemon=True)

    def caught_up(self, population):
        self._thread.start()

    def scored(self, job, record, population):
        self.scores += 1
        if self.scores == self.after:
            self._due.set()

    def close(self):
        self._over.set()
        self._due.set()
        self._thread.join()

    def _wait(self) -> None:
        self._due.wait()
        if not self._over.wait(self.seconds):
            self.killed = kill(victims(self.kind, os.getpid(), self.rng))


def within(folder: Path, kind: str, rng: random.Random) -> str:
    """Kill below this process, which goes on; say when and how many."""
    later = Later(kind, rng)
    search(folder, later)
    return f"{later.seconds:.2f} s after score {later.after}, {later.killed} killed"


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "--search", str(folder)], stderr=subprocess.PIPE, text=True)


def whole(folder: Path, kind: str, rng: random.Random) -> str:
    """Kill a driver, or what it cannot live without, and go on with another; say when."""
    after, seconds = moment(rng, 12)
    driver, deadline = start(folder), time.monotonic() + MOST_SECONDS
    while after and count_scores(folder) < after and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(seconds)
    below = descendants(driver.pid)
    killed = kill(victims(kind, driver.pid, rng)) if driver.poll() is None else 0
    end = "killed" if killed else "had ended"
    try:
        driver.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        end = f"did not end within {MOST_SECONDS} s of its {kind}'s death"
        driver.kill()
        driver.communicate()
    done = count_scores(folder)
    resumed = start(folder)
    try:
        _, errors = resumed.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        kill([resumed.pid, *descendants(resumed.pid)])
        raise RuntimeError(f"{end}, {done} scores; the next one did not end within {MOST_SECONDS} s") from None
    if resumed.returncode:
        raise RuntimeError(f"{end}, {done} scores; the next one failed: {errors.strip()[-800:]}")
    left = [command for pid, command in below.items() if Path(f"/proc/{pid}").exists()]
    kill([pid for pid in below if Path(f"/proc/{pid}").exists()])  # who lost its driver may take a while to notice
    if "did not end" in end:
        raise RuntimeError(end)
    return f"{seconds:.2f} s after score {after}, {end} with {done} scores; {len(left)} processes still there"


def count_scores(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.read_bytes().count(b'"kind": "score"') if log.exists() else 0


def one_run(seed: int, folder: Path, reference: Path, kind: str | None = None) -> tuple[str, str, list[str]]:
    """Run a search with a random kill; return what was killed, what happened, and what came out otherwise."""
    rng = random.Random(seed)
    # A search whose driver dies takes three times as long, so one in eight is enough
    drawn = rng.choice(WHOLE) if rng.random() < 0.125 else rng.choice(WITHIN)
    kind = drawn if kind is None else kind
    try:
        told = (whole if kind in WHOLE else within)(folder, kind, rng)
        return kind, told, differences(folder, reference)
    except Exception as error:  # a run that fails is a finding; the others go on
        return kind, f"{type(error).__name__}: {error}", ["did not end"]


def main(count: int = 100, first_seed: int = 0, kind: str | None = None) -> int:
    """Run them all; return how many failed."""
    wrong = 0
    with tempfile.TemporaryDirectory() as made, ray_session():
        reference = make_reference(Path(made) / "reference")
        for seed in range(first_seed, first_seed + count):
            started = time.monotonic()
            what, told, differs = one_run(seed, Path(made) / str(seed), reference, kind)
            wrong += bool(differs)
            result = f"DIFFERS: {', '.join(differs)}" if differs else "equal"
            print(f"seed {seed:4} {time.monotonic() - started:6.1f} s  {result}  {what}: {told}", flush=True)
    print(f"{count - wrong} of {count} equal to the search that nothing happened to")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["--search"]:
        with ray_session():
            search(Path(sys.argv[2]))
    else:
        sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:4]) > 0)
