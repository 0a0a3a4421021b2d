"""What every process of a search takes (PSS), on plain slots and on a worker group; a table. For 2 cores.

The trainings are real and tiny: networks and images of a real search come on top, in slots and workers alone.
"""

import os
from collections import defaultdict
from pathlib import Path

import pytest
from ray_helpers import BOTH, descendants, proportional_megabytes, tiny_settings

from rolekd_ray.search.ledger import Observer
from rolekd_ray.search.population_search import search_population

MOST_MEGABYTES_OF_A_TRIAL = 120
LOOK_AFTER = 12


class Look(Observer):
    """Takes the memory of all processes below this one after some scores."""

    def __init__(self):
        self.scores, self.megabytes = 0, defaultdict(list)

    def scored(self, job, record, population):
        self.scores += 1
        if self.scores == LOOK_AFTER:
            self.megabytes["driver"].append(proportional_megabytes(os.getpid()))
            for pid, command in descendants(os.getpid()).items():
                self.megabytes[title(command)].append(proportional_megabytes(pid))


def title(command: str) -> str:
    """Short name of a process of Ray: `ray::Slot.train` is a Slot."""
    if command.startswith("ray::"):
        return command.removeprefix("ray::").split(".")[0].split()[0].split("(")[0]
    words = command.split()
    named = [word for word in words[:3] if not word.startswith("-")]
    return Path(named[-1]).name if "python" in words[0] else Path(words[0]).name


def megabytes_of(folder: Path, *overrides: str) -> dict[str, list[float]]:
    look = Look()
    search_population(folder, tiny_settings(*overrides), BOTH, observers=[look])
    return look.megabytes


@pytest.mark.benchmark
def test_memory_of_every_process(ray, tmp_path, capsys):
    plain = megabytes_of(tmp_path / "plain")
    group = megabytes_of(tmp_path / "group", "slots.workers=2")
    with capsys.disabled():
        for kind, found in (("two plain slots", plain), ("one group of two workers", group)):
            print(f"\n{kind:32}{'number':>8}{'MB each':>10}{'MB':>8}")
            for name, each in sorted(found.items(), key=lambda item: -sum(item[1])):
                print(f"{name[:30]:32}{len(each):8}{sum(each) / len(each):10.0f}{sum(each):8.0f}")
            print(f"{'all':32}{sum(map(len, found.values())):8}{'':10}{sum(map(sum, found.values())):8.0f}")
    assert max(plain["Member"] + group["Member"]) <= MOST_MEGABYTES_OF_A_TRIAL
