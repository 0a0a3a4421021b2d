"""Wide residual networks (Zagoruyko & Komodakis, arXiv 1605.07146)."""

from torch import Tensor, nn

from rolekd_ray.models.initial import he_initialise
from rolekd_ray.models.layers import DefaultLayers


class PreactivationBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions, beside a shortcut.

    Where the width changes, the shortcut is a 1x1 convolution of the *activated* input; else it is the input itself.
    """

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        active = self.relu1(self.bn1(features))
        inner = self.relu2(self.bn2(self.conv1(active)))
        return self.conv2(inner) + (features if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """`wrn_{depth}_{widen}`: a 3x3 stem, `stage1`..`stage3`, BatchNorm, global average pooling, a linear classifier.

    Each stage has (depth - 4) / 6 blocks of widths 16, 32, 64 times `widen`; no dropout. The global pooling takes any
    input from 8x8 up.

    Source: arXiv 1605.07146 table 1; names and layout as the CRD benchmark's code has them.
    """

    def __init__(self, depth: int, widen: int, *, num_classes: int, channels: int):
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stage1 = _stage(widths[0], widths[1], blocks, stride=1)
        self.stage2 = _stage(widths[1], widths[2], blocks, stride=2)
        self.stage3 = _stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(widths[3], num_classes)
        self.layers = DefaultLayers(("stage1", "stage2", "stage3"))
        he_initialise(self)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.stage3(self.stage2(self.stage1(self.conv1(images))))
        return self.classifier(self.relu(self.bn1(features)).mean((2, 3)))


def _stage(width_in: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreactivationBlock(width_in, width, stride)
    return nn.Sequential(first, *(PreactivationBlock(width, width, 1) for _ in range(blocks - 1)))
