"""What both networks put out for one batch, and what else a method may ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Shards(Protocol):
    """How a batch is dealt out to workers; `training.sharding.Sharding` is one."""

    def rows(self, batch: Tensor) -> Tensor:
        """Return this worker's rows of a batch."""
        ...

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return all workers' rows of a batch of `count`; backwards, this worker's rows get their gradient."""
        ...


class Whole:
    """The `Shards` of a worker alone."""

    def rows(self, batch: Tensor) -> Tensor:
        """Return the batch."""
        return batch

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return the rows."""
        return rows


@dataclass(frozen=True, eq=False)
class Networks:
    """Both networks, for methods that make images of their own.

    `student` and `teacher` map (n, C, H, W) normalised images to logits (n, K), each on this worker's rows; the
    student is in training mode. `mean` and `std`, (C,), say how images in [0, 1] were normalised.
    """

    student: Callable[[Tensor], Tensor]
    teacher: Callable[[Tensor], Tensor]
    mean: Tensor
    std: Tensor
    shards: Shards = field(default_factory=Whole)


@dataclass(frozen=True, eq=False)
class Outputs:
    """One batch as methods see it: whole, on every worker. `registry.GIVEN` says what each name means.

    Features are by layer name here; a method is given those of its own layers. What is None cannot be had; a method
    that takes it ends in an error. `labels` are class probabilities (N, K) where images are mixed. `picked_ratio` is no
    method's: where images were picked, the mean score of the picked over all candidates'.
    """

    logits_student: Tensor
    logits_teacher: Tensor | None
    labels: Tensor
    temperature: float = 4.0
    progress: float = 0.0
    indices: Tensor | None = None
    generator: torch.Generator | None = None
    features_student: Mapping[str, Tensor] = field(default_factory=dict)
    features_teacher: Mapping[str, Tensor] = field(default_factory=dict)
    logits_self: Tensor | None = None
    features_self: Mapping[str, Tensor] = field(default_factory=dict)
    one_view: bool = True
    view: Tensor | None = None
    networks: Networks | None = None
    picked_ratio: Tensor | None = None
