import itertools
import re

import pytest
import torch
from torch import nn

from rolekd_ray.errors import ConfigError
from rolekd_ray.models import build_network, check_network, network_names
from rolekd_ray.models.zoo import ZOO


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# In millions, colour. Rounded as published: the CRD benchmark's tables, and the papers' for CIFAR-10.
PUBLISHED = {
    ("resnet20", 100): "0.278",
    ("resnet56", 100): "0.862",
    ("wrn_40_2", 100): "2.26",
    ("wrn_16_2", 100): "0.70",
    ("resnet32x4", 100): "7.43",
    ("resnet8x4", 100): "1.23",
    ("vgg13", 100): "9.46",
    ("MobileNetV2", 100): "0.81",
    ("ShuffleV1", 100): "0.95",
    ("ShuffleV2", 100): "1.36",
    ("ResNet50", 100): "23.7",
    ("resnet20", 10): "0.27",
    ("resnet32", 10): "0.47",  # 0.46 in the paper, without 1x1 shortcuts
    ("resnet44", 10): "0.66",
    ("resnet110", 10): "1.7",
    ("wrn_28_10", 10): "36.5",
}


@pytest.mark.parametrize(("name", "num_classes"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(name, num_classes):
    published = PUBLISHED[name, num_classes]
    digits = len(published.split(".")[1])
    found = count(build_network(name, num_classes=num_classes, channels=3, seed=0)) / 1e6
    assert f"{found:.{digits}f}" == published


# arXiv 2012.02909 gives these, in millions, for 100 classes; it leaves BatchNorm's parameters out.
WITHOUT_BATCHNORM = {
    "wrn_40_2": "2.25",
    "wrn_16_2": "0.70",
    "resnet56": "0.857",
    "resnet20": "0.277",
    "resnet32x4": "7.42",
    "resnet8x4": "1.23",
    "vgg13": "9.46",
    "vgg8": "3.96",
    "MobileNetV2": "0.79",
    "ResNet50": "23.65",
    "ShuffleV2": "1.34",
}


@pytest.mark.parametrize("name", WITHOUT_BATCHNORM)
def test_counts_without_batchnorm_are_the_published_ones(name):
    network = build_network(name, num_classes=100, channels=3, seed=0)
    found = sum(count(module) for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)) / 1e6
    published = WITHOUT_BATCHNORM[name]
    assert f"{found:.{len(published.split('.')[1])}f}" == published


def resnet_count(widths: tuple[int, ...], blocks: tuple[int, ...], num_classes: int, channels: int) -> int:
    """Parameters counted by hand: convolutions without bias, two numbers per channel of each BatchNorm."""
    total = channels * 9 * widths[0] + 2 * widths[0]
    for (width_in, width), count in zip(itertools.pairwise(widths), blocks):
        total += 9 * width_in * width + 9 * width * width + 4 * width
        total += (count - 1) * (18 * width * width + 4 * width)
        if width_in != width or width != widths[1]:
            total += width_in * width + 2 * width
    return total + widths[-1] * num_classes + num_classes


@pytest.mark.parametrize(
    ("name", "widths", "blocks"),
    [
        ("resnet8", (16, 16, 32, 64), (1, 1, 1)),
        ("resnet14", (16, 16, 32, 64), (2, 2, 2)),
        ("resnet110", (16, 16, 32, 64), (18, 18, 18)),
        ("resnet8x4", (32, 64, 128, 256), (1, 1, 1)),
        ("resnet32x4", (32, 64, 128, 256), (5, 5, 5)),
        ("cifar_resnet18", (64, 64, 128, 256, 512), (2, 2, 2, 2)),
        ("ResNet34", (64, 64, 128, 256, 512), (3, 4, 6, 3)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_parameter_counts_by_hand(name, widths, blocks, channels):
    network = build_network(name, num_classes=7, channels=channels, seed=0)
    assert count(network) == resnet_count(widths, blocks, 7, channels)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [
        ("vgg8", ((64,), (128,), (256,), (512,), (512,))),
        ("vgg11", ((64,), (128,), (256, 256), (512, 512), (512, 512))),
        ("vgg16", ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))),
        ("vgg19", ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)),
    ],
)
def test_vgg_counts_by_hand(name, convolutions):
    widths = [1, *itertools.chain(*convolutions)]
    total = sum(9 * width_in * width + 3 * width for width_in, width in itertools.pairwise(widths))
    assert count(build_network(name, num_classes=7, channels=1, seed=0)) == total + 512 * 7 + 7


def test_alexnet_counts_by_hand():
    convolutions = 121 * 3 * 64 + 25 * 64 * 192 + 9 * (192 * 384 + 384 * 256 + 256 * 256)
    batchnorms = 2 * (64 + 192 + 384 + 256 + 256 + 4096 + 4096)
    total = convolutions + batchnorms + 4096 * 4096 + 4096 * 4096 + 4096 * 7
    assert count(build_network("AlexNet", num_classes=7, channels=3, seed=0)) == total


def test_role_kd_network_has_the_weights_its_code_has():
    network = build_network("cifar_resnet18", num_classes=100, channels=3, seed=0)
    kinds = (nn.Conv2d, nn.Linear)
    assert sum(count(module) for module in network.modules() if isinstance(module, kinds)) == 11_210_532


SMALL = ("resnet8", "resnet20", "resnet8x4", "cifar_resnet10", "wrn_10_1", "wrn_16_2")
FAMILIES = ("vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50", "AlexNet")


@pytest.mark.parametrize("name", [*SMALL, *FAMILIES])
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (3, (9, 13)), (1, (28, 28))])
def test_takes_any_size(name, channels, size):
    network = build_network(name, num_classes=5, channels=channels, seed=0)
    logits = network(torch.randn(2, channels, *size))
    assert logits.shape == (2, 5) and logits.dtype == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_every_network_takes_the_smallest_images(name):
    check_network(name, num_classes=3, channels=1, image_size=(8, 8))


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "cifar_resnet18", "resnet8x4"])
def test_stages_have_names_and_halve_the_image(name):
    network = build_network(name, num_classes=5, channels=3, seed=0).eval()
    sizes = {}
    for path, stage in network.named_children():
        if path.startswith("stage"):
            stage.register_forward_hook(
                lambda module, inputs, output, path=path: sizes.update({path: output.shape[-1]})
            )
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    stages = 4 if name == "cifar_resnet18" else 3
    assert sizes == {f"stage{i + 1}": 32 >> i for i in range(stages)}


def test_seed_decides_the_weights_and_leaves_the_generators_alone():
    before = torch.get_rng_state()
    first, same, other = (build_network("resnet8", num_classes=5, channels=1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    torch.manual_seed(3)
    assert torch.equal(first.conv1.weight, build_network("resnet8", num_classes=5, channels=1).conv1.weight)


@pytest.mark.parametrize("name", FAMILIES)
def test_seeds_of_all_families(name):
    first, same = (build_network(name, num_classes=5, channels=1, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(weight, same[key]) for key, weight in first.items())


def test_initial_weights_follow_he():
    network = build_network("wrn_16_2", num_classes=10, channels=3, seed=0)
    convolutions = [
        module for module in network.modules() if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000
    ]
    assert len(convolutions) > 8
    for module in convolutions:
        fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
        spread = module.weight.std().item() * (fan_out / 2) ** 0.5
        assert spread == pytest.approx(1, abs=5 / (2 * module.weight.numel()) ** 0.5)  # five standard errors
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_residual_block_against_plain_formulae():
    network = build_network("resnet8x4", num_classes=4, channels=3, seed=0).eval().double()
    block = network.stage2[0]
    x = torch.randn(2, 64, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def normalised(conv, bn, x):
        out = nn.functional.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding)
        mean, variance = bn.running_mean[:, None, None], bn.running_var[:, None, None]
        return (out - mean) / (variance + bn.eps).sqrt() * bn.weight[:, None, None] + bn.bias[:, None, None]

    inner = normalised(block.conv1, block.bn1, x).clamp(min=0)
    expected = (normalised(block.conv2, block.bn2, inner) + normalised(*block.shortcut, x)).clamp(min=0)
    assert torch.allclose(block(x), expected, atol=1e-12) and expected.shape == (2, 128, 3, 3)


def test_preactivation_block_adds_the_raw_input_or_projects_the_activated_one():
    network = build_network("wrn_16_2", num_classes=4, channels=3, seed=0).eval()
    first, second = network.stage2[0], network.stage2[1]
    for block in (first, second):
        nn.init.zeros_(block.conv2.weight)  # leaves the shortcut alone
    x = torch.randn(2, 32, 8, 8)
    assert torch.allclose(first(x), first.shortcut(first.bn1(x).clamp(min=0)))
    y = torch.randn(2, 64, 4, 4)
    assert torch.equal(second(y), y) and second.shortcut is None


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2"])
def test_stem_and_head_against_plain_formulae(name):
    network = build_network(name, num_classes=4, channels=3, seed=0).eval()
    seen: dict[str, torch.Tensor] = {}
    network.stage1.register_forward_pre_hook(lambda _, inputs: seen.update(stem=inputs[0]))
    network.stage3.register_forward_hook(lambda _, inputs, output: seen.update(last=output))
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(images)
        stem, last = nn.functional.conv2d(images, network.conv1.weight, padding=1), seen["last"]
        if name.startswith("wrn"):  # normalises at the end, the others at the start
            last = network.bn1(last).clamp(min=0)
        else:
            stem = network.bn1(stem).clamp(min=0)
        pooled = last.flatten(2).sum(2) / last[0, 0].numel()
        expected = pooled @ network.classifier.weight.T + network.classifier.bias
    assert torch.allclose(seen["stem"], stem, atol=1e-5)
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_networks(name, channels):
    network = build_network(name, num_classes=6, channels=channels, seed=0)
    assert network(torch.randn(4, channels, 64, 64)).shape == (4, 6)
    if channels == 3:
        import torchvision

        reference = torchvision.models.get_model(name, weights=None, num_classes=6)
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in reference.state_dict().items()
        }


def test_googlenet_returns_logits_alone():
    network = build_network("googlenet", num_classes=6, channels=1, seed=0)
    assert network.train()(torch.randn(2, 1, 64, 64)).shape == (2, 6)


@pytest.mark.slow
def test_one_network_of_each_family_runs_on_grey_images():
    families: dict[str, str] = {}
    for name in network_names():
        families.setdefault(re.split(r"\d|_(?:base|large|small|l|m|s|b)$", name)[0], name)
    assert len(families) > 15
    for name in families.values():
        check_network(name, num_classes=3, channels=1, image_size=(96, 96))


def test_where_both_have_a_name_ours_wins_and_theirs_has_a_prefix():
    import torchvision

    names = network_names()
    for name in ("vgg11", "vgg13", "vgg16", "vgg19"):
        assert names.count(name) == 1 and f"torchvision.{name}" in names
    assert "torchvision.resnet18" not in names and "resnet18" in names
    with torch.device("meta"):
        reference = torchvision.models.get_model("vgg11", weights=None, num_classes=6).state_dict()
        theirs = build_network("torchvision.vgg11", num_classes=6, channels=3).state_dict()
    ours = build_network("vgg11", num_classes=6, channels=3, seed=0).state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in reference.items()}
    assert "stem.1.running_mean" in ours
    same = [build_network(name, num_classes=6, channels=1, seed=0) for name in ("resnet18", "torchvision.resnet18")]
    assert torch.equal(*(network.fc.weight for network in same))


def test_names():
    names = network_names()
    assert len(set(names)) == len(names)
    assert {"resnet8", "resnet110", "resnet32x4", "wrn_40_2", "resnet18", "mobilenet_v3_small"} <= set(names)
    assert not any(name.startswith("vit") for name in names)
    assert count(build_network("wrn_22_3", num_classes=5, channels=1, seed=0)) > 0  # valid though not listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet_20"}, "Did you mean 'resnet20'?"),
        ({"name": "MobilenetV2"}, "Did you mean 'MobileNetV2'?"),
        ({"name": "torchvision.resnet8"}, "unknown network"),
        ({"name": "wrn_40_02x"}, "Did you mean 'wrn_40_2'?"),
        ({"name": "wrn_15_2"}, "depth 10, 16, 22"),
        ({"name": "wrn_4_2"}, "depth 10, 16, 22"),
        ({"name": "wrn_16_0"}, "widen 1 or more"),
        ({"channels": 2}, "expected 1 (grey) or 3 (RGB)"),
        ({"num_classes": 1}, "expected at least 2"),
    ],
)
def test_wrong_settings(arguments, words):
    with pytest.raises(ConfigError) as caught:
        build_network(**{"name": "resnet8", "num_classes": 5, "channels": 3, **arguments})
    assert words in str(caught.value)


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as caught:
        build_network("resnet21", num_classes=0, channels=4)
    assert len(caught.value.problems) == 3


def test_images_too_small_for_a_network():
    check_network("resnet8", num_classes=10, channels=1, image_size=(8, 8))
    with pytest.raises(ConfigError, match="'alexnet': cannot take images of 32x24 pixels"):
        check_network("alexnet", num_classes=10, channels=3, image_size=(24, 32))


def test_half_an_ending_is_told_the_whole_one():
    with pytest.raises(ConfigError, match=r"unknown network 'resnet8_w2'.*_w<bits>a<bits>"):
        build_network("resnet8_w2", num_classes=10, channels=3)
