"""Variational information distillation: how well the student's features predict the teacher's, as a Gaussian."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.distill.registry import method
from rolekd_ray.distill.regressor import as_map

_LEAST_VARIANCE = 1e-5


@method("vid", layers="stages", same_view=True)
class VariationalInformation(nn.Module):
    """Sum over layers of mean ½ ((F_t - µ(F_s))² / σ² + ln σ²): a scalar in nats, which may be negative.

    Per layer, µ is three 1x1 convolutions with ReLUs between, as wide as the teacher's layer, and σ² one number per
    channel of the teacher's: softplus(a) + 1e-5. Both are learned along, so the loss is least, ½ ln σ² at the smallest
    σ², where the student's features tell all about the teacher's. Where heights differ, the larger map is pooled.

    Args:
        shapes_student: (C, H, W) or (D,) each.
        shapes_teacher: of the teacher's layers.
        initial_variance: σ² at the start, above 1e-5.

    Source: Ahn et al., arXiv 1904.05835; networks, initial σ² of 5 and weight 1 as the CRD
    benchmark's code has them (RepDistiller, after the authors').
    """

    def __init__(
        self,
        shapes_student: Sequence[Sequence[int]],
        shapes_teacher: Sequence[Sequence[int]],
        *,
        initial_variance: float = 5.0,
    ):
        super().__init__()
        pairs = [(own[0], wanted[0]) for own, wanted in zip(shapes_student, shapes_teacher, strict=True)]
        start = math.log(math.expm1(initial_variance - _LEAST_VARIANCE))
        self.means = nn.ModuleList(_mean_network(own, wanted) for own, wanted in pairs)
        self.raw_variances = nn.ParameterList(torch.full((wanted,), start) for _, wanted in pairs)

    def forward(self, features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
        """Return the loss of features (N, …)."""
        layers = zip(features_student, features_teacher, self.means, self.raw_variances, strict=True)
        return torch.stack([_negative_log_likelihood(*layer) for layer in layers]).sum()


def _negative_log_likelihood(own: Tensor, wanted: Tensor, mean: nn.Module, raw_variance: Tensor) -> Tensor:
    """Return the mean over all numbers, without the constant ½ ln 2π."""
    own, wanted = _same_size(as_map(own), as_map(wanted))
    variance = (F.softplus(raw_variance) + _LEAST_VARIANCE)[:, None, None]
    return 0.5 * ((wanted - mean(own)).square() / variance + variance.log()).mean()


def _mean_network(channels: int, wanted: int) -> nn.Sequential:
    widths = [channels, wanted, wanted, wanted]
    first, second, last = (nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(widths))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def _same_size(own: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    if own.shape[2] > wanted.shape[2]:
        return F.adaptive_avg_pool2d(own, wanted.shape[2:]), wanted  # type: ignore[arg-type]
    if own.shape[2:] != wanted.shape[2:]:
        return own, F.adaptive_avg_pool2d(wanted, own.shape[2:])  # type: ignore[arg-type]
    return own, wanted
