"""The tail of a network: together with what comes before it, it is the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rolekd_ray.distill.capture import Capture
from rolekd_ray.errors import ConfigError
from rolekd_ray.models.tail import tail_of
from rolekd_ray.models.zoo import build_network, network_names

NETWORKS = [n for n in ("resnet8", "wrn_10_2", "cifar_resnet10", "vgg8", "MobileNetV2") if n in network_names()]


def network_of(name: str) -> nn.Module:
    return build_network(name, num_classes=7, channels=3, seed=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_stage_and_its_tail_are_the_network(name):
    network = network_of(name)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network(images)  # running statistics that a tail must copy
    network.eval()
    for layer in network.layers.stages:
        with Capture(network, [layer]) as capture:
            logits = network(images)
        tail = tail_of(network, layer)
        assert torch.equal(tail(capture.features[layer]), logits), layer


@pytest.mark.parametrize("name", NETWORKS)
def test_its_state_is_a_part_of_the_networks_and_a_copy(name):
    network = network_of(name)
    own = network.state_dict()
    layer = network.layers.stages[-2]
    state = tail_of(network, layer).state_dict()
    assert 0 < len(state) < len(own)
    assert all(torch.equal(value, own[key]) for key, value in state.items())
    assert not any(key == layer or key.startswith(f"{layer}.") for key in state), "what comes before is not in it"
    assert not {v.data_ptr() for v in own.values() if v.numel()} & {v.data_ptr() for v in state.values() if v.numel()}
    with torch.no_grad():
        for value in state.values():
            value.zero_()
    assert any(value.any() for key, value in network.state_dict().items() if key in state)
    other = build_network(name, num_classes=7, channels=3, seed=1)
    missing = other.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys


def test_a_tail_trains_like_the_network():
    network = network_of("resnet8").train()
    layer = network.layers.stages[1]
    features = torch.randn(4, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    tail = tail_of(network, layer)
    with Capture(network, [layer]) as capture:
        network(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert capture.features[layer].shape[1] == features.shape[1]
    F.cross_entropy(tail(features), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tail.parameters())
    assert all(p.grad is None for p in network.parameters())


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.b(self.a(x)) + x


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else x


def inside_a_block() -> tuple[nn.Module, str]:
    network = network_of("resnet8")
    block = network.layers.stages[0]
    return network, next(
        name for name, module in network.named_modules() if name.startswith(block) and type(module) is nn.Conv2d
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (inside_a_block, "flows around it; expected a layer through which everything flows"),
        (lambda: (TwoWays(), "a"), "layer 'a': add takes x, which flows around it"),
        (lambda: (network_of("resnet8"), "stagex"), "layer 'stagex': is not called; expected another one of"),
        (lambda: (Untraceable(), "a"), "layer 'a': Untraceable cannot be cut there"),
    ],
)
def test_where_a_network_cannot_be_cut(make, words):
    network, layer = make()
    with pytest.raises(ConfigError) as error:
        tail_of(network, layer)
    assert words in str(error.value)
