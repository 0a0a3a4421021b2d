import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.errors import ConfigError
from rolekd_ray.models import build_network, default_layers, fold_batchnorm, layer_names, layer_table

ZOO = ("resnet8", "resnet8x4", "wrn_10_1", "cifar_resnet10", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "AlexNet")


def captured(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What passes at a layer: the output of a module, or its input."""
    seen: list[Tensor] = []
    if name.endswith(".input"):
        module = network.get_submodule(name.removesuffix(".input"))
        hook = module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    else:
        hook = network.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        network(images)
    hook.remove()
    (found,) = seen
    return found


@pytest.mark.parametrize("name", ZOO)
def test_stages_are_feature_maps_and_the_embedding_is_what_the_last_layer_takes(name):
    network = build_network(name, num_classes=5, channels=1, seed=0).eval()
    layers = default_layers(network)
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    shapes = [captured(network, stage, images).shape for stage in layers.stages]
    assert len(shapes) >= 3 and all(len(shape) == 4 for shape in shapes)
    for before, after in itertools.pairwise(shapes):
        assert after[2:] <= before[2:] and (after[1] >= before[1] or name == "AlexNet")  # 384 channels, then 256
    assert shapes[-1][1] > shapes[0][1] and shapes[-1][2] < shapes[0][2]
    embedding = captured(network, layers.embedding, images)
    last = network.get_submodule(layers.embedding.removesuffix(".input"))
    assert embedding.shape == (2, last.in_features) and last.out_features == 5
    with torch.no_grad():
        assert torch.equal(last(embedding), network(images))


# Channels and side of the maps of 32x32 images: what the CRD benchmark's networks and role-kd's AlexNet have.
MAPS = {
    "resnet56": ((16, 32), (32, 16), (64, 8)),
    "wrn_40_2": ((32, 32), (64, 16), (128, 8)),
    "vgg8": ((128, 16), (256, 8), (512, 4), (512, 4)),
    "vgg13": ((128, 16), (256, 8), (512, 4), (512, 4)),
    "MobileNetV2": ((12, 16), (16, 8), (48, 4), (160, 2)),
    "ShuffleV1": ((240, 16), (480, 8), (960, 4)),
    "ShuffleV2": ((116, 16), (232, 8), (464, 4)),
    "ResNet18": ((64, 32), (128, 16), (256, 8), (512, 4)),
    "ResNet50": ((256, 32), (512, 16), (1024, 8), (2048, 4)),
    "AlexNet": ((192, 8), (384, 8), (256, 8), (256, 4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_default_stages_are_the_benchmarks_features(name):
    network = build_network(name, num_classes=5, channels=3, seed=0)
    shapes = {layer: shape for layer, _, shape in layer_table(network, 3, (32, 32))}
    stages = default_layers(network).stages
    assert tuple(shapes[stage] for stage in stages) == tuple((width, side, side) for width, side in MAPS[name])


@pytest.mark.parametrize("name", ZOO)
def test_copies_and_folded_copies_have_them_too(name):
    network = build_network(name, num_classes=5, channels=3, seed=0)
    layers = default_layers(network)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for other in (copy.deepcopy(network).eval(), fold_batchnorm(network)):
        assert default_layers(other) == layers
        for layer in (*layers.stages, layers.embedding):
            assert torch.allclose(
                captured(other, layer, images), captured(network.eval(), layer, images), atol=1e-4, rtol=1e-4
            )


def test_other_networks_have_no_defaults():
    assert default_layers(build_network("mobilenet_v3_small", num_classes=5, channels=3, seed=0)) is None
    other = nn.Sequential(nn.Flatten())
    other.layers = nn.Identity()  # a module of that name is something else
    assert default_layers(other) is None


class Branching(nn.Module):
    """Modules that a table must treat specially."""

    def __init__(self):
        super().__init__()
        self.several = nn.ModuleList([nn.Conv2d(1, 4, 3), nn.Conv2d(1, 2, 3)])
        self.unused = nn.Linear(2, 2)
        self.pair, self.named = Pair(), Named()
        self.twice = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.several[1](self.several[0](images).mean(1, keepdim=True))
        self.pair(features)
        self.named(features)
        return self.twice(self.twice(features)).mean((2, 3))


class Pair(nn.Module):
    def forward(self, features: Tensor) -> tuple[Tensor, int]:
        return features, 3


class Named(nn.Module):
    def forward(self, features: Tensor) -> dict[str, object]:
        return {"maps": features, "pooled": [features.mean((2, 3))]}


def test_the_table_has_a_row_for_each_module_that_is_called():
    network = Branching()
    assert layer_names(network) == ["several.0", "several.1", "unused", "pair", "named", "twice"]
    assert layer_table(network, 1, (8, 10)) == [
        ("several.0", "Conv2d", (4, 6, 8)),
        ("several.1", "Conv2d", (2, 4, 6)),
        ("pair", "Pair", "tuple of (2, 4, 6), int"),
        ("named", "Named", "dict of maps: (2, 4, 6), pooled: list of (2,)"),
        ("twice", "MaxPool2d", (2, 2, 3)),
    ]


def test_the_table_of_a_network_by_hand():
    rows = {
        name: shape for name, _, shape in layer_table(build_network("resnet8", num_classes=7, channels=1), 1, (8, 12))
    }
    assert rows["conv1"] == rows["stage1"] == rows["stage1.0.relu1"] == (16, 8, 12)
    assert rows["stage2"] == rows["stage2.0.shortcut.1"] == (32, 4, 6)
    assert rows["stage3"] == (64, 2, 3) and rows["classifier"] == (7,)


def test_making_the_table_changes_nothing():
    network = build_network("resnet8", num_classes=5, channels=1, seed=0).double().train()
    network.stage1.eval()
    modes = [module.training for module in network.modules()]
    before = copy.deepcopy(network.state_dict())
    layer_table(network, 1, (8, 8))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_images_it_cannot_take():
    network = build_network("alexnet", num_classes=5, channels=3, seed=0).train()
    with pytest.raises(ConfigError, match="cannot take images of 32x24 pixels"):
        layer_table(network, 3, (24, 32))
    assert network.training and not any(module._forward_hooks for module in network.modules())
