"""Hardware."""

from typing import Literal

from pydantic import field_validator, model_validator

from rolekd_ray.config.base import Count, NotNegative, Positive, Section


class WorkerResources(Section):
    """What one worker of a slot takes."""

    cpus: Positive = 1.0
    gpus: NotNegative = 0.0
    """A share of one GPU, below 1, or a whole number of GPUs."""

    @field_validator("gpus")
    @classmethod
    def _share_or_whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("expected a share below 1 or a whole number")
        return gpus


class SlotSettings(Section):
    """The hardware that trains intervals."""

    count: Count | Literal["auto"] = "auto"
    """`auto`: as many as the machine or cluster holds, at most one per member; follows nodes that join."""
    workers: Count | tuple[Count, Count] = 1
    """Workers that share each batch, in one slot: 1 is a process, more are a Ray Train worker group over any nodes.
    `[1, 4]`: as many as fit, again after a node is lost; the whole batch stays what it was."""
    resources_per_worker: WorkerResources = WorkerResources()

    @property
    def fewest_workers(self) -> int:
        """What a slot needs at least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """What a slot takes where there is room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _group(self) -> "SlotSettings":
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"workers: got {list(self.workers)}; expected [fewest, most]")  # type: ignore[arg-type]
        if self.most_workers > 1 and 0 < self.resources_per_worker.gpus < 1:
            raise ValueError(
                f"resources_per_worker.gpus: got {self.resources_per_worker.gpus:g}; expected 0 or whole GPUs, for "
                "workers that share a batch cannot share a GPU (NCCL refuses)"
            )
        return self
