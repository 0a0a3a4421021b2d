"""What the tests of the command line share: calling it, refusals, small data sets and checkpoints."""

import hashlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from rolekd_ray import cli
from rolekd_ray.config import DataSettings
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import save_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.networks import describe_networks

TINY = {
    "data.train": 60,
    "data.validation": 60,
    "final.train": 60,
    "teacher.model": "resnet8",
    "training.batch_size": 30,
    "training.precision": "float32",  # evaluation's: what is compared must not depend on the processor
    "search.population_size": 2,
    "search.epochs": 2,
    "search.perturbation_interval_epochs": 1,
}
"""A real run on a few digits: 2 members, 2 generations."""


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as `--set` arguments."""
    return [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Result:
    """What a call of the command line left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


def rolekd(*arguments: object) -> Result:
    """Call the command line in this process, in the current folder; a single text is split as a shell would."""
    words = shlex.split(str(arguments[0])) if len(arguments) == 1 else list(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["rolekd", *words]), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Result(code, out.getvalue(), err.getvalue())


def rolekd_process(*arguments: object, cwd: Path, **options: Any) -> Result:
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "rolekd_ray", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, **options)
    return Result(done.returncode, done.stdout, done.stderr)


def tree(folder: Path) -> dict[str, str]:
    """Every path below a folder, with a digest of each file's content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(call: Callable[[], Result], *words: str, folder: Path | None = None) -> Result:
    """Assert that a call is refused as bad input: exit code 2, one worded error that holds `words`, nothing written.

    Args:
        call: makes the call.
        words: each must stand in stderr.
        folder: must be the same before and after; None: the current folder.
    """
    folder = folder or Path.cwd()
    before = tree(folder)
    result = call()
    assert result.code == 2, result
    assert result.out == "", result.out
    assert "Traceback" not in result.err, result.err
    missing = [word for word in words if word not in result.err]
    assert not missing, f"{missing} not in: {result.err}"
    assert tree(folder) == before
    return result


def write_images(
    folder: Path,
    *,
    count: int = 40,
    num_classes: int = 4,
    size: Callable[[int], tuple[int, int]] = lambda row: (8, 8),
    label: Callable[[int], int] | None = None,
) -> Path:
    """Write a folder of Parquet files with noise images; `size` and `label` by row."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        cells = []
        for row in range(count):
            width, height = size(row)
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(picture, "PNG")
            cells.append({"bytes": picture.getvalue(), "path": None})
        labels = [label(row) if label else row % num_classes for row in range(count)]
        folder.mkdir(parents=True, exist_ok=True)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(
            pa.table({"img": pa.array(cells, kind), "label": pa.array(labels, pa.int64())}), folder / f"{split}.parquet"
        )
    return folder


def write_network(folder: Path, model: str = "resnet8", *, role: Role = Role.TEACHER, data: Path | None = None) -> Path:
    """Write the checkpoint of a network with fresh weights, for the digits or for a folder of Parquet."""
    source: Sequence[Any] = ("digits", None, 60) if data is None else ("parquet", data, 10)
    settings = DataSettings(**dict(zip(("source", "path", "validation"), source)))
    images = open_training_data(settings, train=None)
    network = build_network(model, num_classes=images.image_set.num_classes, channels=images.image_set.channels, seed=0)
    description = describe_networks({role: model}, images.image_set, images.statistics, settings)
    save_checkpoint(folder, {"networks": {str(role): network.state_dict()}}, description)
    return folder


def write_schedule(file: Path) -> Path:
    """Write a schedule of both roles over PBA's space whose policies change most images; the student's has a change."""

    def policy(*ops: str) -> list[dict[str, Any]]:
        return [{"op": op, "probability": 1.0, "magnitude_bin": 8} for op in ops]

    student = [{"epochs": 2, "policy": policy("rotate", "shear_x")}, {"epochs": 2, "policy": policy("invert")}]
    roles = {"teacher": {"segments": [{"epochs": 4, "policy": policy("solarize")}]}, "student": {"segments": student}}
    file.write_text(yaml.safe_dump({"format": "rolekd.schedule/1", "space": "cifar10_pba", "roles": roles}))
    return file


def flip_byte(file: Path, place: int = -9) -> None:
    """Damage one byte of a file."""
    data = bytearray(file.read_bytes())
    data[place] ^= 0xFF
    file.write_bytes(bytes(data))


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, with one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}
