"""Regressors: they bring a student's features to the shape of the teacher's."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.errors import ConfigError


class Regressor(nn.Module):
    """Maps features of one shape to another: channels by a learned 1x1 convolution, sizes by pooling or interpolation.

    Nothing is learned where the channels agree. Vectors are mapped by a linear layer.

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
            raise ConfigError(f"layers: cannot match features of shape {tuple(shape)}; expected {tuple(wanted)}")
        self.size = tuple(wanted[1:])
        self.channels: nn.Module = nn.Identity()
        if shape[0] != wanted[0]:
            make = nn.Linear(shape[0], wanted[0]) if len(shape) == 1 else nn.Conv2d(shape[0], wanted[0], 1, bias=False)
            self.channels = make

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, *shape) to (N, *wanted)."""
        if self.size and features.shape[2:] != self.size:
            smaller = features.shape[2] > self.size[0]
            features = (
                F.adaptive_avg_pool2d(features, self.size)
                if smaller
                else F.interpolate(features, self.size, mode="bilinear", align_corners=False)
            )
        return self.channels(features)
