"""Knowledge review: the student's deep features help its shallow ones to match the teacher's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.distill.registry import method
from rolekd_ray.distill.regressor import as_map

_LEVELS = (4, 2, 1)


@method("review", layers="stages", same_view=True)
class KnowledgeReview(nn.Module):
    """Sum over stages of the hierarchical context loss of fused student features and the teacher's: a scalar.

    From the deepest stage to the shallowest, a fusion (`Fusion`) joins the student's stage with what came out of the
    one below, in `width` channels, and maps it to the teacher's shape. The fusions' BatchNorms use the batch's own
    statistics, so a batch of one image needs maps larger than 1x1.

    Args:
        shapes_student: (C, H, W) or (D,) each, from shallow to deep.
        shapes_teacher: of the teacher's layers.
        width: channels in which stages are fused, at most; fewer if the deepest student stage has fewer.

    Source: Chen et al., arXiv 2104.09044, and the authors' code. It fuses in up to 512 channels, takes the pooled
    embedding as a further, deepest stage (name it in `distill.layers.review` for that), and multiplies the loss by
    min(1, epoch / 20) of 240 epochs; all three differ here. Its weights on CIFAR-100 depend on the pair:
    0.6 (resnet56 to 20), 1 (resnet110 to 32), 5 (wrn_40_2 to 16_2, resnet32x4 to 8x4), 8 (resnet32x4 to ShuffleNet V2).
    """

    def __init__(
        self, shapes_student: Sequence[Sequence[int]], shapes_teacher: Sequence[Sequence[int]], *, width: int = 256
    ):
        super().__init__()
        inner = min(width, shapes_student[-1][0])
        deepest = len(shapes_student) - 1
        self.fusions = nn.ModuleList(
            Fusion(own, inner, wanted, fuses=place < deepest)
            for place, (own, wanted) in enumerate(zip(shapes_student, shapes_teacher, strict=True))
        )

    def forward(self, features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
        """Return the loss of features (N, …)."""
        losses, deeper = [], None
        for own, wanted, fusion in reversed(list(zip(features_student, features_teacher, self.fusions, strict=True))):
            matched, deeper = fusion(as_map(own), deeper)
            losses.append(hierarchical_context_loss(matched, as_map(wanted)))
        return torch.stack(losses).sum()


class Fusion(nn.Module):
    """Attention-based fusion of a student's stage with the one below it.

    Args:
        shape: of the student's stage.
        inner: channels of what is fused.
        wanted: the teacher's shape.
        fuses: whether there is a stage below.
    """

    def __init__(self, shape: Sequence[int], inner: int, wanted: Sequence[int], *, fuses: bool):
        super().__init__()
        self.size = tuple(wanted[1:]) or (1, 1)
        self.enter = _normalised(nn.Conv2d(shape[0], inner, 1, bias=False))
        self.leave = _normalised(nn.Conv2d(inner, wanted[0], 3, padding=1, bias=False))
        self.attention = nn.Conv2d(2 * inner, 2, 1) if fuses else None

    def forward(self, own: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the stage in the teacher's shape, and what the next shallower stage fuses with.

        Args:
            own: (N, C, H, W).
            deeper: (N, inner, H', W') of the stage below; its size is changed to this one's by the nearest pixel.
        """
        fused = self.enter(own)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:])
            share = self.attention(torch.cat([fused, deeper], dim=1)).sigmoid()
            fused = fused * share[:, :1] + deeper * share[:, 1:]
        if fused.shape[2:] != self.size:
            fused = F.interpolate(fused, self.size)
        return self.leave(fused), fused


def hierarchical_context_loss(own: Tensor, wanted: Tensor) -> Tensor:
    """Return the weighted mean of the squared errors of maps (N, C, H, W), and of their means over 4x4, 2x2, 1x1 cells.

    Weights halve from level to level, beginning with 1 for the maps themselves; levels that are not smaller than the
    map are left out.
    """
    levels = [level for level in _LEVELS if level < own.shape[2]]
    errors = [F.mse_loss(own, wanted)]
    for level in levels:
        errors.append(F.mse_loss(F.adaptive_avg_pool2d(own, level), F.adaptive_avg_pool2d(wanted, level)))
    weights = [0.5**place for place in range(len(errors))]
    return torch.stack([weight * error for weight, error in zip(weights, errors)]).sum() / sum(weights)


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))
