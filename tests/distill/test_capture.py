"""Features by hooks: what is kept, when, and that the network does not notice."""

import pytest
import torch
from torch import nn

from rolekd_ray.distill.capture import Capture
from rolekd_ray.errors import ConfigError
from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.models.zoo import build_network


class Parts(nn.Module):
    """Puts out several tensors at once."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"tuple": (x + 1, x + 2), "dict": {"low": x + 1, "high": x + 2}, "text": "no tensor"}[self.kind]


class Odd(nn.Module):
    """One layer that is called twice, one that never is, one with several parts."""

    def __init__(self, kind: str = "tuple"):
        super().__init__()
        self.twice, self.never, self.parts, self.kind = nn.Linear(3, 3), nn.Linear(3, 3), Parts(kind), kind

    def forward(self, x):
        x = self.twice(self.twice(x))
        parts = self.parts(x)
        return x if self.kind == "text" else parts["high"] if self.kind == "dict" else parts[1]


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_outputs_and_inputs_of_named_layers():
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 2)))
    x = rows(5, 3)
    with Capture(network, ["0", "1.0", "1.1.input", "1.input", "0.input", "1"]) as capture:
        y = network(x)
    first = network[0](x)
    found = capture.features
    assert sorted(found) == sorted(capture.layers)
    expected = {"0": first, "1.0": first.tanh(), "1.1.input": first.tanh(), "1.input": first, "0.input": x, "1": y}
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("kind", "low", "high"), [("tuple", "0", "1"), ("dict", "low", "high")])
def test_parts_of_tuples_and_dicts(kind, low, high):
    network = Odd(kind)
    with Capture(network, [f"parts[{low}]", f"parts[{high}]", "parts.input"]) as capture:
        network(rows(2, 3))
    base = capture.features["parts.input"]
    assert torch.equal(capture.features[f"parts[{low}]"], base + 1)
    assert torch.equal(capture.features[f"parts[{high}]"], base + 2)


@pytest.mark.parametrize(
    ("kind", "layer", "words"),
    [
        ("tuple", "parts", r"layer 'parts': puts out a tuple; expected one of parts\[0\], parts\[1\]"),
        ("dict", "parts[middle]", r"puts out a dict; expected one of parts\[low\], parts\[high\]"),
        ("text", "parts", "layer 'parts': puts out a str; expected a tensor, a tuple or a dict"),
        ("text", "twice[0]", "layer 'twice"),
    ],
)
def test_what_is_no_tensor_is_refused_with_its_parts(kind, layer, words):
    network = Odd(kind)
    with pytest.raises(ConfigError, match=words), Capture(network, [layer]):
        network(rows(2, 3))
    assert hooks_of(network) == 0


def test_of_two_calls_the_last_counts():
    network, x = Odd(), rows(2, 3)
    with Capture(network, ["twice", "twice.input"]) as capture:
        network(x)
    once = network.twice(x)
    assert torch.equal(capture.features["twice.input"], once)
    assert torch.equal(capture.features["twice"], network.twice(once))


def test_a_layer_that_is_not_called_is_named():
    network = Odd()
    with Capture(network, ["never", "twice", "never.input"]) as capture:
        network(rows(2, 3))
    with pytest.raises(ConfigError) as error:
        _ = capture.features
    assert [p.split(" was ")[0] for p in error.value.problems] == ["layers: 'never'", "layers: 'never.input'"]
    assert "was called in no forward pass" in str(error.value)


def test_all_unknown_layers_come_with_the_nearest():
    network = build_network("resnet8", num_classes=10, channels=1, seed=0)
    stage = network.layers.stages[1]
    with pytest.raises(ConfigError) as error:
        Capture(network, [stage + "x", stage, "clasifier.input"])
    assert len(error.value.problems) == 2
    assert f"unknown layer '{stage}x'" in error.value.problems[0]
    assert f"Did you mean '{stage}" in error.value.problems[0]
    assert "Did you mean 'classifier'?" in error.value.problems[1]


def test_nothing_of_an_earlier_pass_or_of_a_pass_outside_is_kept():
    network, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), rows(2, 3)
    capture = Capture(network, ["0"])
    with capture:
        assert hooks_of(network) == 1
        network(x)
    assert hooks_of(network) == 0
    before = capture.features["0"]
    network(2 * x)
    assert capture.features["0"] is before
    with capture:
        network(3 * x)
    assert torch.equal(capture.features["0"], network[0](3 * x))
    capture.clear()
    with pytest.raises(ConfigError, match="called in no forward pass"):
        _ = capture.features
    with pytest.raises(ZeroDivisionError), capture:
        raise ZeroDivisionError
    assert hooks_of(network) == 0


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_2"])
def test_features_of_a_folded_network_are_those_of_the_network(name):
    network = build_network(name, num_classes=10, channels=1, seed=0)
    images = rows(4, 1, 8, 8)
    with torch.no_grad():
        network(images)  # running statistics that are not 0 and 1
    network.eval()
    layers = [*network.layers.stages, network.layers.embedding]
    with torch.no_grad():
        with Capture(network, layers) as plain:
            network(images)
        folded = fold_batchnorm(network)
        with Capture(folded, layers) as of_folded:
            folded(images)
    for layer in layers:
        torch.testing.assert_close(of_folded.features[layer], plain.features[layer], rtol=1e-4, atol=1e-5)


def test_torchvisions_networks():
    network = build_network("resnet18", num_classes=10, channels=3, seed=0)
    with Capture(network, ["layer2", "layer3.0.conv1", "fc.input"]) as capture:
        network(rows(2, 3, 32, 32))
    shapes = {name: tuple(value.shape) for name, value in capture.features.items()}
    assert shapes == {"layer2": (2, 128, 4, 4), "layer3.0.conv1": (2, 256, 2, 2), "fc.input": (2, 512)}


def test_a_layer_that_is_overwritten_is_refused():
    """Its ReLU works in place: what hangs there would be the activation, under another name."""
    network = build_network("resnet18", num_classes=10, channels=3, seed=0)
    with Capture(network, ["layer3.0.bn1"]) as capture:
        network(rows(2, 3, 32, 32))
    with pytest.raises(ConfigError, match=r"'layer3.0.bn1' is overwritten"):
        _ = capture.features


def test_the_network_does_not_notice_and_features_carry_the_gradient():
    network = build_network("resnet8", num_classes=10, channels=1, seed=0).eval()
    images, stage = rows(3, 1, 8, 8), network.layers.stages[1]
    names, alone = list(network.state_dict()), network(images)
    with Capture(network, [stage, "classifier.input"]) as capture:
        logits = network(images)
    assert torch.equal(logits, alone) and list(network.state_dict()) == names
    feature = capture.features[stage]
    (of_first,) = torch.autograd.grad(feature.sum(), next(network.parameters()), retain_graph=True)
    assert of_first.abs().sum() > 0
    # The very tensor that the logits hang on: not a copy, whose gradient would be missing
    (through,) = torch.autograd.grad(logits.sum(), feature)
    assert through.abs().sum() > 0
