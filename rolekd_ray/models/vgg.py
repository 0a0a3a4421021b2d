"""VGG networks for small images (Simonyan & Zisserman, arXiv 1409.1556), with BatchNorm and one linear layer."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.models.initial import he_initialise
from rolekd_ray.models.layers import DefaultLayers

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five groups of 3x3 convolutions, `stem` and `stage1`..`stage4`, global average pooling, a linear classifier.

    Max pooling halves the maps before `stage1`, `stage2` and `stage3`; before `stage4` it does so only for images of 64
    pixels or more in height, so 32x32 images end at 4x4. Takes any input from 8x8 up.

    Args:
        counts: convolutions in each group.
        num_classes: K.
        channels: of the input.

    Source: layout and initial weights as the CRD benchmark's code has them (RepDistiller: `vgg8` there is `vgg8_bn`,
    and so on); it has the last pooling at a height of exactly 64.
    """

    layers = DefaultLayers(("stage1", "stage2", "stage3", "stage4"))

    def __init__(self, counts: tuple[int, ...], *, num_classes: int, channels: int):
        super().__init__()
        self.stem = _group(channels, _WIDTHS[0], counts[0])
        for name, width_in, width, count in zip(self.layers.stages, _WIDTHS, _WIDTHS[1:], counts[1:]):
            self.add_module(name, _group(width_in, width, count))
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(_WIDTHS[-1], num_classes)
        he_initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) to logits (N, K)."""
        features = self.stem(images)
        for name in self.layers.stages[:3]:
            features = self.get_submodule(name)(self.pool(features))
        window = 1 + (features.shape[2] >= 8)  # images of 64 pixels or more; no `if`, for folding traces this
        features = self.get_submodule("stage4")(F.max_pool2d(features, window, window))
        return self.classifier(features.mean((2, 3)))


def _group(width_in: int, width: int, count: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [
            nn.Conv2d(width if number else width_in, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


VGGS: dict[str, Callable[..., nn.Module]] = {
    "vgg8": partial(VGG, (1, 1, 1, 1, 1)),
    "vgg11": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19": partial(VGG, (2, 2, 4, 4, 4)),
}
