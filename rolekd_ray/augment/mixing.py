"""What a mixing agent is: it mixes each view of a batch with the view of another image, the sample's partner."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rolekd_ray.roles import Role


@dataclass(frozen=True, eq=False)
class Mix:
    """How samples are mixed.

    Attributes:
        partners: each sample's partner by its place in the dataset, (n,) int64.
        share: how much of the own image is left, (n,) float32 in [0, 1]: its weight (mixup), or exactly its share of
            the pixels (CutMix). 1: the sample stays as it is.
        boxes: where the partner's pixels are: first row, row after the last, first column, column after the last;
            (n, 4) int64. None: the images are blended (mixup).
    """

    partners: Tensor
    share: Tensor
    boxes: Tensor | None


class Mixing(Protocol):
    """A mixing agent: `draw` says who is mixed with whom and how, `apply` does it once both have their views."""

    def draw(
        self, batch: Tensor, at: Tensor, *, pool: Tensor, size: tuple[int, int], seed: int, role: Role, epoch: int
    ) -> Mix:
        """Return how samples of a batch are mixed: a pure function of seed, role, epoch and the sample.

        Neither the rest of the batch nor `at` change a sample's mix, unless the agent is `legacy`: then one mix for
        the whole batch follows from the batch's samples and their order.

        Args:
            batch: samples of the whole batch by their places in the dataset, (B,) int64.
            at: which places of the batch are wanted, (n,) int64; in any order, and repeated where a sample is.
            pool: all samples that are trained on, ascending, (P,) int64; contains those of `batch`.
            size: height and width of the views.
            seed: the run's seed, or a candidate's.
            role: whose views these are.
            epoch: epoch of the training, from 0.

        Raises:
            DataError: the pool holds a single image.
            TrainingError: `legacy`, and the batch holds a single image.
        """
        ...

    def apply(self, views: Tensor, partners: Tensor, mix: Mix) -> Tensor:
        """Return the mixed views, new and in the memory format of `views`; differentiable in both.

        Args:
            views: (n, C, H, W) floats.
            partners: views of the samples' partners, same shape and dtype.
            mix: what `draw` returned for the samples.
        """
        ...


def mixed_targets(labels: Tensor, anchors: Tensor, mix: Mix, num_classes: int) -> Tensor:
    """Return the classes' shares in mixed samples: share * own label + (1 - share) * the partner's.

    Args:
        labels: of the whole dataset, (N,) int64.
        anchors: the samples that were mixed, by their places in the dataset, (n,) int64.
        mix: how.
        num_classes: K.

    Returns:
        (n, K) float32, rows add up to 1.

    Source: mixup (Zhang et al., 1710.09412), eq. 1; CutMix (Yun et al., 1905.04899), eq. 1.
    """
    classes = torch.arange(num_classes, device=labels.device)
    own, other = ((labels[samples][:, None] == classes).float() for samples in (anchors, mix.partners))
    return torch.lerp(other, own, mix.share[:, None])
