"""Residual networks for small images (He et al., arXiv 1512.03385, section 4.2)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from rolekd_ray.models.initial import he_initialise
from rolekd_ray.models.layers import DefaultLayers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: identity, or a 1x1 convolution where the shape changes."""

    expansion = 1

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(width_in, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        inner = self.relu1(self.bn1(self.conv1(features)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(features))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution beside a shortcut; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        narrow = width // self.expansion
        self.conv1 = nn.Conv2d(width_in, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(width_in, width, stride)
        self.relu3 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        inner = self.relu1(self.bn1(self.conv1(features)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        return self.relu3(self.bn3(self.conv3(inner)) + self.shortcut(features))


def _shortcut(width_in: int, width: int, stride: int) -> nn.Sequential:
    if stride == 1 and width_in == width:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class SmallImageResNet(nn.Module):
    """A 3x3 stem, stages `stage1`, `stage2`, ... of residual blocks, global average pooling, a linear classifier.

    The first stage keeps the image's size, each later one halves it. The global pooling takes any input from 8x8 up.

    Args:
        widths: channels of the stem and of each stage's output.
        blocks: blocks in each stage.
        block: `BasicBlock` or `Bottleneck`.
        num_classes: K.
        channels: of the input.

    Source: layout as the CRD benchmark's code has it (RepDistiller): 1x1 convolution shortcuts rather than the paper's
    zero padding, which adds 0.002-0.01 M parameters.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
        *,
        num_classes: int,
        channels: int,
    ):
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layers = DefaultLayers(tuple(f"stage{number}" for number, _ in enumerate(stages, start=1)))
        for name, width_in, width, count in zip(self.layers.stages, widths, stages, blocks):
            self.add_module(name, _stage(block, width_in, width, count, stride=1 if name == "stage1" else 2))
        self.classifier = nn.Linear(stages[-1], num_classes)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.relu(self.bn1(self.conv1(images)))
        for name in self.layers.stages:
            features = self.get_submodule(name)(features)
        return self.classifier(features.mean((2, 3)))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], width_in: int, width: int, count: int, stride: int
) -> nn.Sequential:
    first = block(width_in, width, stride)
    return nn.Sequential(first, *(block(width, width, 1) for _ in range(count - 1)))


_NARROW, _WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
_BROAD = (64, 64, 128, 256, 512)

# depth = 2 + convolutions of all blocks, 2 each or 3 in a bottleneck
RESNETS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": partial(SmallImageResNet, _NARROW, ((depth - 2) // 6,) * 3)
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f"resnet{depth}x4": partial(SmallImageResNet, _WIDE, ((depth - 2) // 6,) * 3) for depth in (8, 32)},
    # The CRD benchmark's ImageNet layouts behind a stem for small images
    "ResNet18": partial(SmallImageResNet, _BROAD, (2, 2, 2, 2)),
    "ResNet34": partial(SmallImageResNet, _BROAD, (3, 4, 6, 3)),
    "ResNet50": partial(SmallImageResNet, (64, 256, 512, 1024, 2048), (3, 4, 6, 3), Bottleneck),
    # The role-kd code's two networks: "ResNet18", the same as above, and its student "ResNet8", which has ten layers.
    **{f"cifar_resnet{depth}": partial(SmallImageResNet, _BROAD, ((depth - 2) // 8,) * 4) for depth in (10, 18)},
}
