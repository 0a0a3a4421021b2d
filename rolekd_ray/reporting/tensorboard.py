"""TensorBoard curves of a search: one line per member."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rolekd_ray.files import delete_tree
from rolekd_ray.policy.jobs import Job, Perturbation
from rolekd_ray.policy.population import Population
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.storage import ObjectPath, Place

FOLDER = "tensorboard"
UPLOAD_SECONDS = 60


class TensorBoard:
    """Writes `tensorboard/member-<n>/`: metrics, donor and each op's setting over epochs.

    Derived from the log: the folder is made anew whenever a search is opened, so curves have no doubled points.
    An object store gets copies of what is written to a local folder: every `UPLOAD_SECONDS`, and on close.
    """

    def __init__(self, folder: Place):
        self.folder = folder / FOLDER
        delete_tree(self.folder)
        self._aside = tempfile.TemporaryDirectory(prefix="rolekd-") if isinstance(self.folder, ObjectPath) else None
        self._uploaded = time.monotonic()
        self._changed: set[int] = set()
        self.writers: dict[int, SummaryWriter] = {}

    def _local(self, member: int) -> Path:
        name = f"member-{member:03d}"
        return Path(self._aside.name, name) if self._aside is not None else Path(str(self.folder), name)

    def scored(self, job: Job, record: Mapping[str, Any], population: Population) -> None:
        """Add one point per tag."""
        if job.member not in self.writers:
            self.writers[job.member] = SummaryWriter(str(self._local(job.member)))
        values = dict(record["metrics"]) | {"donor": -1 if job.donor is None else job.donor}
        for role, policy in job.policies.items():
            values |= policy_scalars(str(role), policy, population.rule.space)
        for tag, value in values.items():
            if isinstance(value, int | float):
                self.writers[job.member].add_scalar(tag, value, job.end_epoch, walltime=record["time"])
        self._changed.add(job.member)
        if time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            self._upload()

    def perturbed(self, perturbation: Perturbation, population: Population) -> None:
        """Nothing to do: the donor is a curve."""

    def dropped(self, record: Mapping[str, Any], population: Population) -> None:
        """Nothing to do: the curve ends."""

    def caught_up(self, population: Population) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Flush and close all files."""
        for writer in self.writers.values():
            writer.close()
        self._upload()
        if self._aside is not None:
            self._aside.cleanup()

    def _upload(self) -> None:
        """Copy the files that changed; each whole, for objects cannot grow."""
        self._uploaded = time.monotonic()
        if not isinstance(self.folder, ObjectPath):
            return
        while self._changed:
            member = self._changed.pop()
            self.writers[member].flush()
            for file in self._local(member).iterdir():
                (self.folder / file.parent.name / file.name).write_bytes(file.read_bytes())


def policy_scalars(role: str, policy: Any, space: SearchSpace) -> dict[str, float]:
    """Return a policy as numbers by tag: probability and strength per op.

    `probability` is summed over copies, `magnitude_bin` is the mean weighted by probability.
    """
    values: dict[str, float] = {f"{role}/{name}": value for name, value in policy.scalars.items()}
    for op in space.ops:
        settings = [setting for setting in policy.settings if setting.op == op.name]
        chances = [space.probability(setting.probability_bin) for setting in settings]
        total = sum(chances)
        values[f"{role}/policy/{op.name}/probability"] = total
        if total:
            bins = (chance * setting.magnitude_bin for chance, setting in zip(chances, settings))
            values[f"{role}/policy/{op.name}/magnitude_bin"] = sum(bins) / total
    return values
