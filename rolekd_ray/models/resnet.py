"""Residual networks for small images (He et al., arXiv 1512.03385, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.models.initial import he_initialise


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or width_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(features))


class SmallImageResNet(nn.Module):
    """A 3x3 stem, stages `stage1`, `stage2`, ... of basic blocks, global average pooling, a linear classifier.

    The first stage keeps the image's size, each later one halves it. The global pooling takes any input from 8x8 up.

    Args:
        widths: channels of the stem and of each stage.
        blocks: blocks per stage.
        num_classes: K.
        channels: of the input.

    Source: layout as the CRD benchmark's code has it (RepDistiller): 1x1 convolution shortcuts rather than the paper's
    zero padding, which adds 0.002-0.01 M parameters.
    """

    def __init__(self, widths: tuple[int, ...], blocks: int, *, num_classes: int, channels: int):
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.stages = len(stages)
        for number, (width_in, width) in enumerate(zip(widths, stages), start=1):
            self.add_module(f"stage{number}", _stage(width_in, width, blocks, stride=1 if number == 1 else 2))
        self.classifier = nn.Linear(stages[-1], num_classes)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = F.relu(self.bn1(self.conv1(images)))
        for number in range(1, self.stages + 1):
            features = self.get_submodule(f"stage{number}")(features)
        return self.classifier(features.mean((2, 3)))


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
