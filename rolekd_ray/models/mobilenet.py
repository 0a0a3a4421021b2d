"""MobileNetV2 for small images (Sandler et al., arXiv 1801.04381)."""

from torch import Tensor, nn

from rolekd_ray.models.initial import he_initialise
from rolekd_ray.models.layers import DefaultLayers

# stage -> (expansion, width at multiplier 1, blocks, stride of the first), one entry per row of the paper's table 2
_ROWS = {
    "stage1": ((1, 16, 1, 1), (6, 24, 2, 1)),
    "stage2": ((6, 32, 3, 2),),
    "stage3": ((6, 64, 4, 2), (6, 96, 3, 1)),
    "stage4": ((6, 160, 3, 2), (6, 320, 1, 1)),
}
_LAST = 1280  # not multiplied


class InvertedResidual(nn.Sequential):
    """A widening 1x1, a depthwise 3x3 and a narrowing 1x1 convolution, without activation after the last.

    The input is added where the shape does not change.
    """

    def __init__(self, width_in: int, width: int, stride: int, expansion: int):
        inner = width_in * expansion
        super().__init__(
            *(nn.Conv2d(width_in, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(
                nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
            ),
            *(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)),
        )
        self.adds = stride == 1 and width_in == width

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, width_in, H, W) to (N, width, H / stride, W / stride)."""
        inner = super().forward(features)
        return features + inner if self.adds else inner


class MobileNetV2(nn.Module):
    """A 3x3 `stem` of stride 2, `stage1`..`stage4` of inverted residuals, a 1x1 `head`, pooling, a linear classifier.

    32x32 images become maps of 16, 8, 4 and 2 pixels after the stages. Takes any input from 8x8 up.

    Args:
        multiplier: of all widths but the head's.
        num_classes: K.
        channels: of the input.

    Source: layout and initial weights as the CRD benchmark's code has them (RepDistiller, `mobile_half`: multiplier
    0.5): ReLU where the paper has ReLU6, stride 1 in the paper's second row, and a first block that keeps its widening
    convolution.
    """

    layers = DefaultLayers(tuple(_ROWS))

    def __init__(self, multiplier: float = 0.5, *, num_classes: int, channels: int):
        super().__init__()
        width_in = int(32 * multiplier)
        self.stem = _convolution(channels, width_in, 3, stride=2)
        for name, rows in _ROWS.items():
            blocks = []
            for expansion, width, count, stride in rows:
                for number in range(count):
                    width_out = int(width * multiplier)
                    blocks.append(InvertedResidual(width_in, width_out, 1 if number else stride, expansion))
                    width_in = width_out
            self.add_module(name, nn.Sequential(*blocks))
        self.head = _convolution(width_in, _LAST, 1, stride=1)
        self.classifier = nn.Linear(_LAST, num_classes)
        he_initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.stem(images)
        for name in self.layers.stages:
            features = self.get_submodule(name)(features)
        return self.classifier(self.head(features).mean((2, 3)))


def _convolution(width_in: int, width: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )
