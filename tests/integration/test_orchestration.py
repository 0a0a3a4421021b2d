"""What the search costs beside training: start-up, hand-over, decisions, memory. For a quiet machine of 2 cores.

`python tests/integration/test_orchestration.py 128` measures a population of that size; a trial takes 115 MB.
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

SCRIPT = Path(__file__).parent / "orchestration_run.py"


def run(folder: Path, *, size: int, members: int, generations: int) -> dict:
    command = [sys.executable, str(SCRIPT), str(folder), str(size), str(members), str(generations)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def by_generation(facts: dict) -> list[list[dict]]:
    generations = defaultdict(list)
    for row in facts["rows"]:
        generations[row["generation"]].append(row)
    return [generations[g] for g in sorted(generations)]


@pytest.mark.benchmark
def test_sixteen_members_ten_generations(tmp_path, capsys):
    facts = run(tmp_path, size=4, members=16, generations=10)
    first, *rest = by_generation(facts)
    looks = facts["looks"]
    first_interval = min(row["started"] for row in first) - facts["started"]
    # A member's first row reaches the driver when its trial is up
    all_up = looks["first"]["time"] - facts["started"]
    after_first = max(row["ended"] for row in rest[-1]) - looks["first"]["time"]
    each = after_first / sum(map(len, rest))
    # The first gap waits for trials to start, not for a decision
    gaps = [
        min(row["started"] for row in later) - max(row["ended"] for row in earlier) for earlier, later in pairwise(rest)
    ]
    memory = max(looks["last"]["members"].values())
    with capsys.disabled():
        print(
            f"\nfirst interval {first_interval:.1f} s, all 16 up {all_up:.1f} s, {each:.4f} s per member-generation, "
            f"decision median {median(gaps) * 1000:.0f} ms, most {max(gaps) * 1000:.0f} ms, {memory:.0f} MB per member"
        )
    assert len(facts["rows"]) == 160
    assert len(looks["last"]["slots"]) == 2 and looks["first"]["slots"] == looks["last"]["slots"]
    assert len(looks["last"]["members"]) == 16
    assert looks["first"]["members"].keys() == looks["last"]["members"].keys()
    assert first_interval <= 20 and all_up <= 40
    assert each <= 0.05 and median(gaps) <= 0.05
    assert memory <= 120


@pytest.mark.benchmark
def test_exploit_of_a_45_megabyte_state(tmp_path, capsys):
    facts = run(tmp_path, size=45_000_000, members=4, generations=6)
    exploits = [row["load_seconds"] for row in facts["rows"] if row["donor"] not in (None, row["member"])]
    with capsys.disabled():
        print(f"\n{len(exploits)} exploits of 45 MB: median {median(exploits):.2f} s, most {max(exploits):.2f} s")
    assert exploits and max(exploits) <= 0.5


CURVE_GENERATIONS = 10


def costs_of(folder: Path, members: int) -> dict[str, float]:
    """Return what a population of no-op members takes, once all trials are up; print it."""
    facts = run(folder, size=4, members=members, generations=CURVE_GENERATIONS)
    assert len(facts["rows"]) == members * CURVE_GENERATIONS and len(facts["looks"]["last"]["members"]) == members
    # Trials that have just come up are still busy with themselves in the second generation, and leave in the last
    ends = [max(row["ended"] for row in rows) for rows in by_generation(facts)[1:-1]]
    look = facts["looks"]["last"]
    costs = {
        "members": members,
        "all up s": facts["looks"]["first"]["time"] - facts["started"],
        "s a generation": median(later - earlier for earlier, later in pairwise(ends)),
        "driver MB": look["driver"],
        "dispatcher MB": look["dispatcher"],
        "trial MB": median(look["members"].values()),
        "all trials MB": sum(look["members"].values()),
        "free MB": look["free"],
    }
    print("   ".join(f"{name} {value:.4g}" for name, value in costs.items()), flush=True)
    return costs


@pytest.mark.benchmark
def test_costs_grow_no_faster_than_the_population(tmp_path, capsys):
    with capsys.disabled():
        print()
        small, large = (costs_of(tmp_path / str(members), members) for members in (16, 64))
    assert large["s a generation"] <= 1.25 * small["s a generation"] * 64 / 16
    assert large["all up s"] <= 1.25 * small["all up s"] * 64 / 16
    assert large["driver MB"] - small["driver MB"] <= 1.0 * (64 - 16)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for number in map(int, sys.argv[1:]):
            costs_of(Path(made) / str(number), number)
