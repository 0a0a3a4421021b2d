"""ShuffleNets for small images: V1 (Zhang et al., arXiv 1707.01083) and V2 (Ma et al., arXiv 1807.11164)."""

import torch
from torch import Tensor, nn

from rolekd_ray.models.layers import DefaultLayers

_STEM = 24
_STAGES = ("stage1", "stage2", "stage3")


class ShuffleV1(nn.Module):
    """A 1x1 stem, `stage1`..`stage3` of shuffle units, global average pooling, a linear classifier.

    Each stage halves the maps first, so 32x32 images become 16, 8 and 4 pixels. Takes any input from 8x8 up.

    Source: layout as the CRD benchmark's code has it (RepDistiller): 3 groups, table 1's widths at scale 1, a 1x1 stem
    without the stem's pooling, and ReLU after the depthwise convolution, which the paper leaves out. Initial weights
    are torch's own, as there.
    """

    layers = DefaultLayers(_STAGES)

    def __init__(self, *, num_classes: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        width_in = _STEM
        for name, width, count in zip(_STAGES, (240, 480, 960), (4, 8, 4)):
            first = GroupedUnit(width_in, width, stride=2, groups=3)
            self.add_module(name, nn.Sequential(first, *(GroupedUnit(width, width, 1, 3) for _ in range(count - 1))))
            width_in = width
        self.classifier = nn.Linear(width_in, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.relu(self.bn1(self.conv1(images)))
        for name in _STAGES:
            features = self.get_submodule(name)(features)
        return self.classifier(features.mean((2, 3)))


class GroupedUnit(nn.Module):
    """V1's unit: 1x1 in groups, shuffle, depthwise 3x3, 1x1 in groups; the input is added, or pooled and appended."""

    def __init__(self, width_in: int, width: int, stride: int, groups: int):
        super().__init__()
        own = width - width_in if stride == 2 else width
        inner = own // 4
        self.groups = 1 if width_in == _STEM else groups  # so few channels are not grouped (the paper's section 3.2)
        self.conv1 = nn.Conv2d(width_in, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, own, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        inner = shuffled(self.relu1(self.bn1(self.conv1(features))), self.groups)
        inner = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(inner)))))
        joined = inner + features if self.pool is None else torch.cat([inner, self.pool(features)], 1)
        return self.relu3(joined)


class ShuffleV2(nn.Module):
    """A 1x1 stem, `stage1`..`stage3` of shuffle units, a 1x1 convolution, pooling, a linear classifier.

    Each stage halves the maps first, so 32x32 images become 16, 8 and 4 pixels. Takes any input from 8x8 up.

    Source: layout as the CRD benchmark's code has it (RepDistiller): table 5's widths at scale 1, a 1x1 stem without
    the stem's pooling. Initial weights are torch's own, as there.
    """

    layers = DefaultLayers(_STAGES)

    def __init__(self, *, num_classes: int, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU()
        width_in = _STEM
        for name, width, count in zip(_STAGES, (116, 232, 464), (3, 7, 3)):
            self.add_module(
                name, nn.Sequential(HalvingUnit(width_in, width), *(SplitUnit(width) for _ in range(count)))
            )
            width_in = width
        self.conv2 = nn.Conv2d(width_in, 1024, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1024)
        self.relu2 = nn.ReLU()
        self.classifier = nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.relu1(self.bn1(self.conv1(images)))
        for name in _STAGES:
            features = self.get_submodule(name)(features)
        features = self.relu2(self.bn2(self.conv2(features)))
        return self.classifier(features.mean((2, 3)))


class SplitUnit(nn.Module):
    """V2's unit of stride 1: half of the channels pass as they are, half through a branch, then both are shuffled."""

    def __init__(self, width: int):
        super().__init__()
        self.branch = _branch(width // 2, width // 2, stride=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width, H, W) to the same shape."""
        passing, taken = features.chunk(2, dim=1)
        return shuffled(torch.cat([passing, self.branch(taken)], 1), 2)


class HalvingUnit(nn.Module):
    """V2's unit of stride 2: two branches take all channels, and both are shuffled."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.shortcut = nn.Sequential(
            *(nn.Conv2d(width_in, width_in, 3, 2, padding=1, groups=width_in, bias=False), nn.BatchNorm2d(width_in)),
            *(nn.Conv2d(width_in, width // 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()),
        )
        self.branch = _branch(width_in, width // 2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / 2, W / 2)."""
        return shuffled(torch.cat([self.shortcut(features), self.branch(features)], 1), 2)


def _branch(width_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)),
        *(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
    )


def shuffled(features: Tensor, groups: int) -> Tensor:
    """Return features (N, C, H, W) with channel i of each of g groups in a row: group 0's first, group 1's first, …"""
    return features.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
