"""Networks by the names that knowledge-distillation tables use."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from rolekd_ray.errors import ConfigError, unknown_name
from rolekd_ray.models.alexnet import AlexNet
from rolekd_ray.models.mobilenet import MobileNetV2
from rolekd_ray.models.quantised import quantise, split_bits
from rolekd_ray.models.residual import JOIN, ResidualSum
from rolekd_ray.models.resnet import RESNETS
from rolekd_ray.models.shufflenet import ShuffleV1, ShuffleV2
from rolekd_ray.models.torchvision_networks import torchvision_names, torchvision_network
from rolekd_ray.models.vgg import VGGS
from rolekd_ray.models.wide_resnet import WideResNet

ZOO: dict[str, Callable[..., nn.Module]] = {
    **RESNETS,
    **VGGS,
    "MobileNetV2": MobileNetV2,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
    "AlexNet": AlexNet,
}
WIDE_RESNETS = ("wrn_10_2", "wrn_16_1", "wrn_16_2", "wrn_28_2", "wrn_28_10", "wrn_40_1", "wrn_40_2")  # those in tables
_THEIRS = "torchvision."


def network_names() -> list[str]:
    """Return the names that `build_network` knows, ours first.

    Beside them it takes any valid `wrn_{depth}_{widen}`, each of torchvision's with the prefix `torchvision.`, which
    only those whose name is ours too need, and bits behind a name.
    """
    theirs = (_THEIRS + name if name in ZOO else name for name in torchvision_names())
    return [*ZOO, *WIDE_RESNETS, *theirs]


def build_network(name: str, *, num_classes: int, channels: int, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights that maps images (N, channels, H, W) to logits (N, num_classes), nothing else.

    Names are case-sensitive: `ResNet18` is the tables' network for small images, `resnet18` torchvision's for large
    ones. Where a name is in both, ours wins: `vgg11`, `vgg13`, `vgg16` and `vgg19` are the tables', with BatchNorm, and
    `torchvision.vgg11` is torchvision's. Our own networks take any H and W from 8 up; torchvision's are made for larger
    images and have smallest sizes of their own. No pretrained weights. Where torchvision's network is for colour, a
    grey one has another first convolution.

    An ending `_w2a4` quantises: 2 bits of weights, 4 of activations (`quantised.quantise`); parameters and initial
    weights are those of the name without it.

    Args:
        name: one of `network_names()`, or `wrn_{depth}_{widen}` with depth 6n + 4; bits of 1, 2, 4, 8 or 32 behind it.
            Or two such joined by `+`, whose logits add (`ResidualSum`).
        num_classes: K.
        channels: of the images, 1 or 3.
        seed: of the initial weights; the global generators keep their state. None draws from the global generator.

    Raises:
        ConfigError: unknown name, or sizes or bits out of range; names the nearest. Or the network cannot be quantised.
    """
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPUs
        return _build(name, num_classes, channels)


def _build(name: str, num_classes: int, channels: int) -> nn.Module:
    if JOIN in name:
        return ResidualSum(*(_build(part, num_classes, channels) for part in name.rsplit(JOIN, 1)))
    make, bits = _find(name, num_classes, channels)
    network = make(num_classes=num_classes, channels=channels)
    quantise(network, weight_bits=bits[0], activation_bits=bits[1], where=f"network {name!r}")
    return network


def check_network(name: str, *, num_classes: int, channels: int, image_size: tuple[int, int]) -> None:
    """Check that a network of this name exists and takes images of height and width `image_size`, in pixels.

    Builds the network and runs it on torch's meta device, which computes shapes and no values.

    Raises:
        ConfigError: as `build_network`, or the images are too small for it.
    """
    # Built for real, then moved: some of torchvision's networks look at values while they are built.
    network = build_network(name, num_classes=num_classes, channels=channels, seed=0).to("meta").eval()
    with torch.no_grad():
        try:
            network(torch.empty(2, channels, *image_size, device="meta"))
        except RuntimeError as problem:
            size = f"{image_size[1]}x{image_size[0]}"
            raise ConfigError(f"network {name!r}: cannot take images of {size} pixels: {problem}") from problem


def _find(name: str, num_classes: int, channels: int) -> tuple[Callable[..., nn.Module], tuple[int, int]]:
    """Return what builds a network, and its bits of weights and of activations."""
    plain, bits, problems = split_bits(name)
    if num_classes < 2:
        problems.append(f"network {name!r}: num_classes: got {num_classes}; expected at least 2")
    if channels not in (1, 3):
        problems.append(f"network {name!r}: channels: got {channels}; expected 1 (grey) or 3 (RGB)")
    make = _maker(plain)
    if isinstance(make, str):
        problems.append(make)
    if problems:
        raise ConfigError(*problems)
    assert not isinstance(make, str)
    return make, bits


def _maker(name: str) -> Callable[..., nn.Module] | str:
    """Return what builds a network, or the problem."""
    if name in ZOO:
        return ZOO[name]
    if wide := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        depth, widen = map(int, wide.groups())
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            return f"network: got {name!r}; expected wrn_<depth>_<widen>, depth 10, 16, 22, 28, ... and widen 1 or more"
        return partial(WideResNet, depth, widen)
    if name.removeprefix(_THEIRS) in torchvision_names():
        return partial(torchvision_network, name.removeprefix(_THEIRS))
    hint = " An ending that quantises is _w<bits>a<bits>, as in resnet8_w2a2." if re.search(r"_[wa]\d+$", name) else ""
    return unknown_name("network", "network", name, network_names()) + hint
