"""The blocks of the mobile networks, the VGGs and AlexNet against plain formulae."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rolekd_ray.models import build_network
from rolekd_ray.models.shufflenet import shuffled


def normalised(conv: nn.Module, bn: nn.Module, x: Tensor) -> Tensor:
    """A convolution group by group, or a linear layer, then BatchNorm with running statistics."""
    if isinstance(conv, nn.Linear):
        out = x @ conv.weight.T
        return (out - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
    parts = zip(x.chunk(conv.groups, 1), conv.weight.chunk(conv.groups))
    out = torch.cat([F.conv2d(part, w, stride=conv.stride, padding=conv.padding) for part, w in parts], 1)
    if conv.bias is not None:
        out = out + conv.bias[:, None, None]
    mean, variance, scale, offset = (
        value[:, None, None] for value in (bn.running_mean, bn.running_var, bn.weight, bn.bias)
    )
    return (out - mean) / (variance + bn.eps).sqrt() * scale + offset


def lively(name: str, channels: int = 3) -> nn.Module:
    """A network in float64 whose BatchNorms and biases do something."""
    network = build_network(name, num_classes=4, channels=channels, seed=0).double().eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
    return network.requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def agree(found: Tensor, expected: Tensor) -> bool:
    assert expected.std() > 1e-3, "the numbers say something"
    return torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_shuffling_against_a_loop(groups):
    features = noise(2, 12, 2, 3)
    expected = torch.empty_like(features)
    for group in range(groups):
        for channel in range(12 // groups):
            expected[:, channel * groups + group] = features[:, group * (12 // groups) + channel]
    assert torch.equal(shuffled(features, groups), expected)
    assert torch.equal(shuffled(features, groups), nn.ChannelShuffle(groups)(features))


@pytest.mark.parametrize(
    ("block", "width", "groups"), [("stage1.0", 24, 1), ("stage2.0", 240, 3), ("stage2.1", 480, 3)]
)
def test_unit_of_shufflenet_v1(block, width, groups):
    unit = lively("ShuffleV1").get_submodule(block)
    x = noise(2, width, 6, 6)
    inner = shuffled(normalised(unit.conv1, unit.bn1, x).clamp(min=0), groups)
    inner = normalised(unit.conv3, unit.bn3, normalised(unit.conv2, unit.bn2, inner).clamp(min=0))
    halves = block.endswith(".0")
    expected = torch.cat([inner, F.avg_pool2d(x, 3, 2, 1)], 1) if halves else inner + x
    assert unit(x).shape == (2, {"1": 240, "2": 480}[block[5]], 3 if halves else 6, 3 if halves else 6)
    assert agree(unit(x), expected.clamp(min=0))
    assert (unit.conv1.groups, unit.conv3.groups) == (groups, 3)


def branch(layers: nn.Sequential, x: Tensor) -> Tensor:
    x = normalised(layers[0], layers[1], x).clamp(min=0)
    return normalised(layers[5], layers[6], normalised(layers[3], layers[4], x)).clamp(min=0)


def test_units_of_shufflenet_v2():
    halving, split = lively("ShuffleV2").stage2[0], lively("ShuffleV2").stage2[1]
    x, y = noise(2, 116, 6, 6), noise(2, 232, 3, 3)
    short = halving.shortcut
    left = normalised(short[2], short[3], normalised(short[0], short[1], x)).clamp(min=0)
    assert agree(halving(x), shuffled(torch.cat([left, branch(halving.branch, x)], 1), 2))
    assert agree(split(y), shuffled(torch.cat([y[:, :116], branch(split.branch, y[:, 116:])], 1), 2))


@pytest.mark.parametrize(
    ("block", "width", "adds"), [("stage2.0", 12, False), ("stage2.1", 16, True), ("stage1.0", 16, False)]
)
def test_inverted_residual(block, width, adds):
    layers = lively("MobileNetV2").get_submodule(block)
    x = noise(2, width, 6, 6)
    inner = normalised(layers[0], layers[1], x).clamp(min=0)
    inner = normalised(layers[6], layers[7], normalised(layers[3], layers[4], inner).clamp(min=0))
    assert agree(layers(x), x + inner if adds else inner)
    assert layers[0].out_channels == width * (1 if block == "stage1.0" else 6)


@pytest.mark.parametrize("block", ["stage2.0", "stage2.1"])
def test_bottleneck(block):
    unit = lively("ResNet50").get_submodule(block)
    x = noise(1, 256 if block == "stage2.0" else 512, 4, 4)
    inner = normalised(unit.conv1, unit.bn1, x).clamp(min=0)
    inner = normalised(unit.conv3, unit.bn3, normalised(unit.conv2, unit.bn2, inner).clamp(min=0))
    short = normalised(*unit.shortcut, x) if block == "stage2.0" else x
    assert agree(unit(x), (inner + short).clamp(min=0))
    assert unit.conv2.stride == ((2, 2) if block == "stage2.0" else (1, 1))


@pytest.mark.parametrize(("size", "halvings"), [(32, {1, 2, 3}), (64, {1, 2, 3, 4})])
def test_vgg_whole(size, halvings):
    network = lively("vgg11")
    x = images = noise(1, 3, size, size)
    for number, group in enumerate((network.stem, network.stage1, network.stage2, network.stage3, network.stage4)):
        x = F.max_pool2d(x, 2) if number in halvings else x
        for place in range(0, len(group), 3):
            x = normalised(group[place], group[place + 1], x).clamp(min=0)
    assert x.shape[-1] == 4
    assert agree(network(images), x.mean((2, 3)) @ network.classifier.weight.T + network.classifier.bias)


@pytest.mark.parametrize("size", [32, 30])
def test_alexnet_whole(size):
    network = lively("AlexNet")
    x = images = noise(1, 3, size, size)
    first, (second, third, fourth) = network.stage1, (network.stage2, network.stage3, network.stage4)

    def pooled(x: Tensor) -> Tensor:  # TensorFlow's SAME: what is missing at the right and the bottom is added there
        odd = x.shape[-1] % 2
        return F.max_pool2d(F.pad(x, (0, odd, 0, odd), value=-torch.inf), 2)

    x = pooled(normalised(first[0], first[1], x).clamp(min=0))
    x = pooled(normalised(first[4], first[5], x).clamp(min=0))
    for stage in (second, third, fourth):
        x = normalised(stage[0], stage[1], x).clamp(min=0)
    x = pooled(x).flatten(1)
    x = normalised(network.hidden[0], network.hidden[1], x).clamp(min=0)
    x = normalised(network.hidden[3], network.hidden[4], x).clamp(min=0)
    assert agree(network(images), x @ network.classifier.weight.T)
