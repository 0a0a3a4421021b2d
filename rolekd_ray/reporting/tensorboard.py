"""TensorBoard curves of a search: one line per member."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from rolekd_ray.policy.population import Job, Perturbation, Population
from rolekd_ray.policy.space import SearchSpace

FOLDER = "tensorboard"


class TensorBoard:
    """Writes `tensorboard/member-<n>/`: metrics, donor and each op's setting over epochs.

    Derived from the log: the folder is made anew whenever a search is opened, so curves have no doubled points.
    """

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writers: dict[int, SummaryWriter] = {}

    def scored(self, job: Job, record: Mapping[str, Any], population: Population) -> None:
        """Add one point per tag."""
        if job.member not in self.writers:
            self.writers[job.member] = SummaryWriter(str(self.folder / f"member-{job.member:03d}"))
        values = dict(record["metrics"]) | {"donor": -1 if job.donor is None else job.donor}
        for role, policy in job.policies.items():
            values |= policy_scalars(str(role), policy, population.rule.space)
        for tag, value in values.items():
            if isinstance(value, int | float):
                self.writers[job.member].add_scalar(tag, value, job.end_epoch, walltime=record["time"])

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
