"""Regressors: they bring a student's features to the shape of the teacher's."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.errors import ConfigError


class Regressor(nn.Module):
    """Maps features of one shape to another: channels by a learned 1x1 convolution, sizes by pooling or interpolation.

    Nothing is learned where the channels agree. Vectors are mapped by a linear layer. Neither has a bias or a
    non-linearity. Maps that are at least as high and as wide as wanted are pooled, others interpolated bilinearly;
    both commute with the convolution, so it is done on the smaller of the two sizes.

    Args:
        shape: of the student's features without the batch: (C, H, W) or (D,).
        wanted: of the teacher's.

    Raises:
        ConfigError: one is a map and the other a vector, or neither.

    Source: the regressor of FitNets (Romero et al., arXiv 1412.6550, section 2.2), as a 1x1 convolution, with sizes
    apart: a convolution that also changed sizes would tie weights to the image's size.
    """

    def __init__(self, shape: Sequence[int], wanted: Sequence[int]):
        super().__init__()
        if len(shape) != len(wanted) or len(shape) not in (1, 3):
            raise ConfigError(
                f"layers: cannot match features, got shape {tuple(shape)}; expected {tuple(wanted)}, or another map "
                "(C, H, W) for a map and another vector (D,) for a vector"
            )
        self.size = (wanted[1], wanted[2]) if len(wanted) == 3 else None
        self.shrinks = self.size is not None and shape[1] >= self.size[0] and shape[2] >= self.size[1]
        self.channels: nn.Module = nn.Identity()
        if shape[0] != wanted[0]:
            make = nn.Linear if self.size is None else _convolution
            self.channels = make(shape[0], wanted[0], bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, *shape) to (N, *wanted)."""
        if self.size is None or features.shape[2:] == self.size:
            return self.channels(features)
        if self.shrinks:
            return self.channels(F.adaptive_avg_pool2d(features, self.size))
        return F.interpolate(self.channels(features), self.size, mode="bilinear", align_corners=False)


def as_map(features: Tensor) -> Tensor:
    """Return maps (N, C, H, W) as they are, and vectors (N, D) as maps of one pixel."""
    return features if features.dim() == 4 else features[:, :, None, None]


def _convolution(channels: int, wanted: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, wanted, 1, bias=bias)
