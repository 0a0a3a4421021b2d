import logging

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.models import build_network, fold_batchnorm


def trained_looking(name: str, channels: int = 3) -> nn.Module:
    """A network whose BatchNorms have statistics and weights far from the identity."""
    network = build_network(name, num_classes=10, channels=channels, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
    return network


def count(network: nn.Module, kind: type) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


# BatchNorms left: a wide network normalises before it convolves, so only the second of each block can be folded, and
# the very first, which the stem alone feeds.
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet8", 0),
        ("resnet20", 0),
        ("resnet8x4", 0),
        ("wrn_16_1", 7),
        ("wrn_16_2", 6),
        ("vgg8", 0),
        ("MobileNetV2", 0),
        ("ShuffleV1", 0),
        ("ShuffleV2", 0),
        ("ResNet50", 0),
        ("AlexNet", 0),
        ("resnet18", 0),
        ("mobilenet_v3_small", 0),
    ],
)
def test_logits_agree(name, left):
    network = trained_looking(name)
    folded = fold_batchnorm(network)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, found = network.eval()(images), folded(images)
    assert expected.std() > 1e-3  # the logits say something
    assert (found - expected).abs().max() < 1e-4 * max(1, expected.abs().max().item())
    assert count(folded, nn.BatchNorm2d) == left


@pytest.mark.parametrize("size", [32, 63, 64, 80])
def test_vggs_pooling_for_large_images_outlives_folding(size):
    network = trained_looking("vgg8")
    folded = fold_batchnorm(network)
    images = torch.randn(1, 3, size, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(folded(images), network.eval()(images), rtol=1e-4, atol=1e-4)


def test_agreement_is_rounding_only():
    network = trained_looking("resnet20").double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.allclose(fold_batchnorm(network)(images), network.eval()(images), rtol=1e-10, atol=1e-10)


def test_real_photographs(shared_data):
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    file = pq.ParquetFile(shared_data / "cifar10" / "test.parquet")
    rows = next(file.iter_batches(batch_size=64, columns=["img"])).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    network = build_network("resnet8", num_classes=10, channels=3, seed=0)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(images)  # running statistics of real data
        expected = network.eval()(images)
        assert (fold_batchnorm(network)(images) - expected).abs().max() < 1e-4


def test_result_is_frozen_and_the_network_untouched():
    network = trained_looking("resnet8").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = fold_batchnorm(network)
    assert not folded.training and not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in network.parameters()}


def test_hooks_on_stages_see_the_same_features():
    network = trained_looking("resnet8").eval()
    folded = fold_batchnorm(network)
    seen: dict[str, Tensor] = {}
    for name, one in (("whole", network), ("folded", folded)):
        one.stage2.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
        with torch.no_grad():
            one(torch.ones(1, 3, 16, 16))
    assert torch.allclose(seen["whole"], seen["folded"], atol=1e-4)


class Odd(nn.Module):
    """Patterns that must not be folded."""

    def __init__(self, pattern: str):
        super().__init__()
        self.pattern = pattern
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3, track_running_stats=pattern != "no statistics")
        if pattern != "no statistics":
            self.bn.running_mean.fill_(0.5)
            self.bn.running_var.fill_(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        match self.pattern:
            case "conv used twice":
                features = self.bn(features) + features
            case "conv called twice":
                features = self.bn(features) + self.conv(images + 1)
            case "bn called twice":
                features = self.bn(features) + self.bn(self.other(images))
            case "no statistics":
                features = self.bn(features)
            case "relu between":
                features = self.bn(features.relu())
        return features.mean((2, 3))


@pytest.mark.parametrize(
    "pattern", ["conv used twice", "conv called twice", "bn called twice", "no statistics", "relu between"]
)
def test_what_cannot_be_folded_is_left(pattern):
    torch.manual_seed(0)
    network = Odd(pattern).eval()
    folded = fold_batchnorm(network)
    images = torch.randn(2, 3, 8, 8)
    assert count(folded, nn.BatchNorm2d) == 1
    assert torch.equal(folded(images), network(images))


class OtherConvolution(nn.Conv2d):
    """As a quantised layer: other weights than it holds."""

    def forward(self, images: Tensor) -> Tensor:
        return self._conv_forward(images, self.weight.sign(), self.bias)


def test_other_kinds_of_convolution_are_left():
    network = nn.Sequential(OtherConvolution(3, 4, 3), nn.BatchNorm2d(4)).eval()
    network[1].running_var.fill_(4)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(fold_batchnorm(network)(images), network(images))


class Sign(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign()


def test_reparametrised_convolution_is_left():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    network[1].running_var.fill_(4)
    nn.utils.parametrize.register_parametrization(network[0], "weight", Sign())  # the tracer takes it for torch's own
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(fold_batchnorm(network)(images), network(images))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn(self.conv(images))
        return features if features.sum() > 0 else -features


def test_untraceable_network_comes_back_frozen(caplog):
    network = Untraceable().train()
    with caplog.at_level(logging.INFO):
        folded = fold_batchnorm(network)
    images = torch.randn(2, 3, 8, 8)
    assert "Untraceable" in caplog.text and not folded.training
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert torch.equal(folded(images), network.eval()(images))
