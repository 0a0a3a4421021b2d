"""AlexNet for small images, as the role-kd code has it."""

from torch import Tensor, nn

from rolekd_ray.models.initial import he_initialise
from rolekd_ray.models.layers import DefaultLayers


class AlexNet(nn.Module):
    """Five convolutions in `stage1`..`stage4`, three poolings, three linear layers; BatchNorm after all but the last.

    32x32 images become maps of 8, 8, 8 and 4 pixels after the stages. The linear layers want 4x4 maps; those of other
    images are brought to that by average pooling, so any input from 8x8 up will do.

    Args:
        num_classes: K.
        channels: of the input.

    Source: `AlexNetCifar` of the role-kd code (arXiv 2004.08861), whose four features are our stages; no biases. Its
    BatchNorm's decay and epsilon and its initial weights differ; ours are the zoo's.
    """

    layers = DefaultLayers(("stage1", "stage2", "stage3", "stage4"))

    def __init__(self, *, num_classes: int, channels: int):
        super().__init__()
        self.stage1 = nn.Sequential(*_convolution(channels, 64, 11), _pooling(), *_convolution(64, 192, 5), _pooling())
        self.stage2 = nn.Sequential(*_convolution(192, 384, 3))
        self.stage3 = nn.Sequential(*_convolution(384, 256, 3))
        self.stage4 = nn.Sequential(*_convolution(256, 256, 3), _pooling())
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Sequential(*_linear(256 * 16, 4096), *_linear(4096, 4096))
        self.classifier = nn.Linear(4096, num_classes, bias=False)
        he_initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.stage4(self.stage3(self.stage2(self.stage1(images))))
        return self.classifier(self.hidden(self.pool(features).flatten(1)))


def _convolution(width_in: int, width: int, size: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(width_in, width, size, padding=size // 2, bias=False)
    return convolution, nn.BatchNorm2d(width), nn.ReLU()


def _linear(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width_in, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()


def _pooling() -> nn.Module:
    return nn.MaxPool2d(2, ceil_mode=True)  # as TensorFlow's padding SAME
