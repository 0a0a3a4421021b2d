import math

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.data import load_image_set
from rolekd_ray.errors import ConfigError
from rolekd_ray.models import build_network, default_layers, fold_batchnorm
from rolekd_ray.models.quantised import (
    QuantisedActivation,
    QuantisedConv2d,
    QuantisedLinear,
    quantised_activation,
    quantised_weight,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- the formulae


def weight_by_hand(weights: list[float], bits: int) -> list[float]:
    if bits == 1:
        scale = sum(map(abs, weights)) / len(weights)
        return [scale if w >= 0 else -scale for w in weights]
    steps = 2**bits - 1
    largest = max(abs(math.tanh(w)) for w in weights)
    return [2 * round(steps * (math.tanh(w) / (2 * largest) + 0.5)) / steps - 1 for w in weights]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_against_a_loop(bits):
    weight = noise(4, 3, 3, 3)
    weight[0, 0, 0, 0] = 0
    expected = torch.tensor(weight_by_hand(weight.flatten().tolist(), bits), dtype=torch.float64)
    assert torch.allclose(quantised_weight(weight, bits).flatten(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_are_the_numbers_nearest_to_dorefas(bits, dtype):
    steps = 2**bits - 1
    found = quantised_weight(torch.linspace(-1, 1, 5001, dtype=dtype), bits).unique()
    assert found.tolist() == torch.tensor([(2 * i - steps) / steps for i in range(steps + 1)], dtype=dtype).tolist()
    found = quantised_activation(torch.linspace(-1, 2, 5001, dtype=dtype), bits).unique()
    assert found.tolist() == torch.tensor([i / steps for i in range(steps + 1)], dtype=dtype).tolist()


def test_levels_of_few_bits():
    assert set(quantised_weight(noise(500), 2).tolist()) == {-1, -1 / 3, 1 / 3, 1}
    assert set(quantised_activation(noise(500), 1).tolist()) == {0, 1}
    weight = torch.tensor([0.5, -1.5, 0.0, -0.0])
    assert quantised_weight(weight, 1).tolist() == [0.5, -0.5, 0.5, 0.5]  # the sign of zero is 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_activations_against_a_loop(bits):
    steps = 2**bits - 1
    values = torch.cat([noise(200), torch.tensor([-1, 0, 0.5, 1, 7], dtype=torch.float64)])
    expected = [round(min(max(value, 0), 1) * steps) / steps for value in values.tolist()]
    assert quantised_activation(values, bits).tolist() == expected


def test_32_bits_are_the_identity_and_a_relu():
    values = noise(9)
    assert quantised_weight(values, 32) is values
    assert torch.equal(quantised_activation(values, 32), values.clamp(min=0))


def test_an_unusual_scale_changes_the_levels_of_one_bit_alone():
    weight = noise(50) * 1e-3
    assert quantised_weight(weight, 2).abs().max() == 1
    assert quantised_weight(weight, 1).abs().max() < 1e-3


# ---- gradients


@pytest.mark.parametrize("bits", [2, 4])
def test_gradient_of_weights_by_hand(bits):
    """With t = tanh w, m = |t_k| the largest: y_j = t_j / m but for the rounding, so dL/dt_j = g_j / m, and t_k also
    gets -sign(t_k) Σ g_j t_j / m²; dt/dw = 1 - t².
    """
    weight, given = noise(7).requires_grad_(), noise(7, seed=1)
    quantised_weight(weight, bits).backward(given)
    t, g = [math.tanh(w) for w in weight.tolist()], given.tolist()
    k = max(range(7), key=lambda j: abs(t[j]))
    m = abs(t[k])
    slopes = [g[j] / m for j in range(7)]
    slopes[k] -= math.copysign(1, t[k]) * sum(g[j] * t[j] for j in range(7)) / m**2
    expected = [slopes[j] * (1 - t[j] ** 2) for j in range(7)]
    assert torch.allclose(weight.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert max(map(abs, expected)) > 0.1


def test_gradient_of_one_bit_weights_is_that_of_the_identity():
    weight, given = noise(7).requires_grad_(), noise(7, seed=1)
    quantised_weight(weight, 1).backward(given)
    assert torch.equal(weight.grad, given)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_gradient_of_activations_passes_inside_the_clip_alone(bits):
    values = torch.tensor([-0.1, 0.0, 0.2, 0.5, 1.0, 1.1], dtype=torch.float64, requires_grad=True)
    given = torch.arange(1.0, 7.0, dtype=torch.float64)
    quantised_activation(values, bits).backward(given)
    assert values.grad.tolist() == [0, 0, 3, 4, 5, 0]


# ---- what of a network is quantised


def kinds(network: nn.Module, *kind: type) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) in kind]


def test_the_layers_of_a_residual_network():
    network = build_network("resnet8_w2a4", num_classes=5, channels=3, seed=0)
    assert kinds(network, nn.Conv2d, nn.Linear) == ["conv1", "classifier"]
    assert kinds(network, nn.ReLU) == ["stage3.0.relu2"]
    assert kinds(network, QuantisedActivation) == [
        *("relu", "stage1.0.relu1", "stage1.0.relu2", "stage2.0.relu1", "stage2.0.relu2", "stage3.0.relu1")
    ]
    assert {"stage1.0.conv1", "stage2.0.conv2", "stage3.0.shortcut.0"} < set(kinds(network, QuantisedConv2d))
    assert network.stage1[0].conv1.bits == 2 and network.relu.bits == 4


@pytest.mark.parametrize(
    ("name", "layers", "activation"),
    [
        ("vgg8", ["stem.0", "classifier"], ["stage4.2"]),
        ("wrn_10_1", ["conv1", "classifier"], ["relu"]),
        ("MobileNetV2", ["stem.0", "classifier"], ["head.2"]),
        ("ShuffleV1", ["conv1", "classifier"], ["stage3.3.relu3"]),
        ("ShuffleV2", ["conv1", "classifier"], ["relu2"]),
        ("ResNet50", ["conv1", "classifier"], ["stage4.2.relu3"]),
        ("AlexNet", ["stage1.0", "classifier"], ["hidden.5"]),
        ("mobilenet_v2", ["features.0.0", "classifier.1"], ["features.18.2"]),  # torchvision's, with ReLU6
        # No linear layer: the last convolution, what it takes from two branches, what the pooling takes
        (
            "squeezenet1_1",
            ["features.0", "classifier.1"],
            ["features.12.expand1x1_activation", "features.12.expand3x3_activation", "classifier.2"],
        ),
    ],
)
def test_first_and_last_layers_and_what_the_last_takes_stay(name, layers, activation):
    network = build_network(f"{name}_w2a2", num_classes=5, channels=3, seed=0)
    assert kinds(network, nn.Conv2d, nn.Linear) == layers
    assert kinds(network, nn.ReLU, nn.ReLU6) == activation


def test_the_share_of_role_kds_student():
    network = build_network("cifar_resnet18_w2a2", num_classes=100, channels=3, seed=0)
    weights = {
        kind: sum(p.numel() for name in kinds(network, *kind) for p in network.get_submodule(name).parameters())
        for kind in ((QuantisedConv2d, QuantisedLinear), (nn.Conv2d, nn.Linear))
    }
    quantised, full = weights.values()
    assert (quantised, quantised + full) == (11_157_504, 11_210_532)


@pytest.mark.parametrize("ending", ["w2a32", "w32a2"])
def test_one_side_alone(ending):
    network = build_network(f"resnet8_{ending}", num_classes=5, channels=3, seed=0)
    assert (len(kinds(network, QuantisedConv2d)), len(kinds(network, QuantisedActivation))) == (
        (8, 0) if ending == "w2a32" else (0, 6)
    )


def test_32_bits_are_the_plain_network():
    plain, other = (build_network(name, num_classes=5, channels=1, seed=3) for name in ("resnet8", "resnet8_w32a32"))
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(plain(images), other(images))
    assert [type(module) for module in plain.modules()] == [type(module) for module in other.modules()]
    # Nothing to quantise, so no reason to refuse
    assert (
        build_network("mobilenet_v3_small_w32a32", num_classes=5, channels=1, seed=3).classifier[-1].out_features == 5
    )


def test_parameters_are_those_of_the_plain_network():
    plain, other = (build_network(name, num_classes=5, channels=1, seed=3) for name in ("vgg8", "vgg8_w1a1"))
    assert list(plain.state_dict()) == list(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in plain.state_dict().items())
    assert default_layers(other) == default_layers(plain)


def test_a_block_against_plain_formulae_and_its_shortcut_carries_levels():
    network = build_network("resnet8_w2a2", num_classes=5, channels=3, seed=0).double().eval()
    seen: dict[str, Tensor] = {}
    network.stage1.register_forward_hook(lambda module, inputs, output: seen.update(taken=inputs[0], given=output))
    network.stage3.register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    images = noise(2, 3, 8, 8)
    with torch.no_grad():
        network(images)
        x, block = seen["taken"], network.stage1[0]

        def convolved(conv: nn.Conv2d, bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
            levels = torch.tensor(weight_by_hand(conv.weight.flatten().tolist(), 2), dtype=torch.float64)
            return bn(nn.functional.conv2d(x, levels.view_as(conv.weight), padding=1))

        def activated(x: Tensor) -> Tensor:
            return (x.clamp(0, 1) * 3).round() / 3

        inner = activated(convolved(block.conv1, block.bn1, x))
        expected = activated(convolved(block.conv2, block.bn2, inner) + x)
    assert set((x * 3).unique().tolist()) == {0, 1, 2, 3}, "the shortcut's values are on the levels"
    assert torch.allclose(seen["given"], expected, atol=1e-12)
    assert len(seen["last"].unique()) > 4, "what the pooling takes is in full precision"


# ---- training, folding, errors


def test_a_student_of_two_bits_learns_digits():
    images, labels = digits(128)
    network = build_network("resnet8_w2a2", num_classes=10, channels=1, seed=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 2 < losses[0] < 3 and losses[-1] < 0.5 * losses[0], losses
    assert len(quantised_weight(network.stage2[0].conv1.weight, 2).unique()) == 4


def digits(count: int) -> tuple[Tensor, Tensor]:
    train = load_image_set("digits", None, split="train")
    images = train.images[:count].float()
    return (images - images.mean()) / images.std(), train.labels[:count]


def test_folding_leaves_quantised_convolutions_and_agrees():
    network = build_network("resnet8_w2a2", num_classes=5, channels=3, seed=0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(3)
            module.running_mean.fill_(0.1)
    folded = fold_batchnorm(network)
    assert kinds(folded, nn.Identity) == ["bn1"], "the stem alone is a plain convolution"
    assert len(kinds(folded, nn.BatchNorm2d)) == len(kinds(network, QuantisedConv2d)) == 8
    assert torch.equal(folded.stage1[0].conv1.weight, network.stage1[0].conv1.weight)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(folded(images), network.eval()(images), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("resnet8_w3a2", ["'resnet8_w3a2': bits of weights: got 3; expected one of 1, 2, 4, 8, 32"]),
        ("resnet8_w3a5", ["bits of weights: got 3", "bits of activations: got 5"]),
        ("resnet9_w2a2", ["unknown network 'resnet9'"]),
        ("resnet8_w2", ["unknown network 'resnet8_w2'"]),
        ("efficientnet_b0_w2a2", ["'features.0.2': got SiLU", "got Sigmoid", "got mul", "got stochastic_depth"]),
        ("swin_t_w2a32", ["got LayerNorm", "'features.1.0.attn': got", "got GELU"]),
        ("densenet121_w2a2", ["the network itself: got relu; expected"]),
        ("googlenet_w2a2", ["layer 'conv1': got relu, and 56 more"]),
        ("resnet18_w2a2", ["layer 'layer4.1.relu': got one module for several activations"]),
    ],
)
def test_what_cannot_be_quantised_is_named(name, problems):
    with pytest.raises(ConfigError) as caught:
        build_network(name, num_classes=5, channels=3, seed=0)
    text = str(caught.value)
    assert all(problem in text for problem in problems), text
    assert len(caught.value.problems) >= len(problems)


def test_weights_of_a_network_that_shares_its_last_activation():
    network = build_network("resnet18_w2a32", num_classes=5, channels=3, seed=0)
    assert kinds(network, nn.Conv2d, nn.Linear) == ["conv1", "fc"]


class Untraceable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


def test_an_untraceable_network():
    from rolekd_ray.models.quantised import quantise

    with pytest.raises(ConfigError, match="mine: cannot be quantised: it cannot be traced: "):
        quantise(Untraceable(), weight_bits=2, activation_bits=2, where="mine")
