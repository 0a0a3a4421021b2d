"""The worker of a group that trains networks to the end."""

from typing import Any

from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.sharding import ALONE, Sharding


class FinalWorker:
    """Is handed final trainings, where the worker of a search is handed intervals."""

    def __init__(self, sharding: Sharding = ALONE):
        self.sharding = sharding

    def train(self, job: Any) -> dict[str, Any]:
        """Train a network to the end together with the group's other workers: the job is a `FinalTraining`."""
        assert isinstance(job, FinalTraining), job
        return train_final(job, self.sharding)
