"""How long a large member state takes to save and to load; `python tests/benchmarks/test_state_speed.py`.

Wall seconds, since the disk is part of it. The peer is the same tree through `torch.save` and `torch.load`, which
check nothing and bring nothing to disk; the last row makes up for that.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from step_arms import head

from rolekd_ray.training.checkpoint import TENSORS, load_checkpoint, save_checkpoint

ROUNDS, MOST_SECONDS = 9, 0.5

pytestmark = pytest.mark.benchmark


def tree() -> dict:
    """47 MB in the form of a member's state: weights and momentum of one network."""
    weights = {f"layer{i}": torch.randn(512, 256, 3, 3) for i in range(5)}
    buffers = {i: {"momentum_buffer": torch.randn_like(weight)} for i, weight in enumerate(weights.values())}
    return {"epoch": 3, "networks": {"student": weights}, "optimizers": {"student": {"state": buffers}}}


def report(folder: Path, rounds: int = ROUNDS) -> float:
    """Print the table; return the median seconds of a load."""
    saved, state, file = tree(), folder / "state", folder / "peer.pt"

    def peer_to_disk() -> None:
        torch.save(saved, file)
        with open(file, "rb") as written:
            os.fsync(written.fileno())

    arms: dict[str, Callable[[], object]] = {
        "save_checkpoint": lambda: save_checkpoint(state, saved, {}),
        "load_checkpoint": lambda: load_checkpoint(state),
        "torch.save": lambda: torch.save(saved, file),
        "torch.load": lambda: torch.load(file, weights_only=True),
        "torch.save, brought to disk": peer_to_disk,
        "load_checkpoint again (A/A)": lambda: load_checkpoint(state),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms)[:: -1 if number % 2 else 1]:  # round 0 warms up and writes what the others load
            started = time.perf_counter()
            arms[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    head(f"state of {(state / TENSORS).stat().st_size / 1e6:.0f} MB", rounds, "wall time")
    for name, spent in seconds.items():
        low, middle, high = statistics.quantiles(spent, n=4, method="inclusive")
        print(f"{name:32}{1000 * middle:8.0f} ms, quartiles {1000 * low:.0f} - {1000 * high:.0f}")
    return statistics.median(seconds["load_checkpoint"])


def test_a_state_of_45_megabytes_loads_within_half_a_second(tmp_path, capsys):
    with capsys.disabled():
        seconds = report(tmp_path)
    assert seconds <= MOST_SECONDS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        report(Path(made))
