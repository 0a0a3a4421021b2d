"""Networks by the names that knowledge-distillation tables use."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torchvision
from torch import nn

from rolekd_ray.errors import ConfigError, unknown_name
from rolekd_ray.models.resnet import SmallImageResNet
from rolekd_ray.models.wide_resnet import WideResNet

_NARROW, _WIDE, _ROLE_KD = (16, 16, 32, 64), (32, 64, 128, 256), (64, 64, 128, 256, 512)

# depth = 2 * blocks * stages + 2
RESNETS: dict[str, Callable[..., nn.Module]] = {
    **{
        f"resnet{depth}": partial(SmallImageResNet, _NARROW, ((depth - 2) // 6,) * 3)
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f"resnet{depth}x4": partial(SmallImageResNet, _WIDE, ((depth - 2) // 6,) * 3) for depth in (8, 32)},
    # The role-kd code's two networks: "ResNet18", and its student "ResNet8", which has ten layers.
    **{f"cifar_resnet{depth}": partial(SmallImageResNet, _ROLE_KD, ((depth - 2) // 8,) * 4) for depth in (10, 18)},
}
WIDE_RESNETS = ("wrn_10_2", "wrn_16_1", "wrn_16_2", "wrn_28_2", "wrn_28_10", "wrn_40_1", "wrn_40_2")  # those in tables


def network_names() -> list[str]:
    """Return the names that `build_network` knows; beside them it takes any valid `wrn_{depth}_{widen}`."""
    return [*RESNETS, *WIDE_RESNETS, *_torchvision_names()]


def build_network(name: str, *, num_classes: int, channels: int, seed: int | None = None) -> nn.Module:
    """Build a network with fresh weights that maps images (N, channels, H, W) to logits (N, num_classes), nothing else.

    Our own networks take any H and W from 8 up; torchvision's are made for larger images and have smallest sizes of
    their own. No pretrained weights. Where torchvision's network is for colour, a grey one has another first
    convolution.

    Args:
        name: one of `network_names()`, or `wrn_{depth}_{widen}` with depth 6n + 4.
        num_classes: K.
        channels: of the images, 1 or 3.
        seed: of the initial weights; the global generators keep their state. None draws from the global generator.

    Raises:
        ConfigError: unknown name, or sizes out of range; names the nearest.
    """
    make = _find(name, num_classes, channels)
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the GPUs
        return make(num_classes=num_classes, channels=channels)


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


def _find(name: str, num_classes: int, channels: int) -> Callable[..., nn.Module]:
    problems = []
    if num_classes < 2:
        problems.append(f"network {name!r}: num_classes: got {num_classes}; expected at least 2")
    if channels not in (1, 3):
        problems.append(f"network {name!r}: channels: got {channels}; expected 1 (grey) or 3 (RGB)")
    make = _maker(name)
    if isinstance(make, str):
        problems.append(make)
    if problems:
        raise ConfigError(*problems)
    assert not isinstance(make, str)
    return make


def _maker(name: str) -> Callable[..., nn.Module] | str:
    """Return what builds a network, or the problem."""
    if name in RESNETS:
        return RESNETS[name]
    if wide := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        depth, widen = map(int, wide.groups())
        if depth < 10 or (depth - 4) % 6 or widen < 1:
            return f"network: got {name!r}; expected wrn_<depth>_<widen>, depth 10, 16, 22, 28, ... and widen 1 or more"
        return partial(WideResNet, depth, widen)
    if name in _torchvision_names():
        return partial(_torchvision_network, name)
    return unknown_name("network", "network", name, network_names())


def _torchvision_names() -> list[str]:
    names = torchvision.models.list_models(module=torchvision.models)
    # Transformers tied to one image size cannot follow a data set's.
    return [name for name in names if not name.startswith(("vit_", "maxvit"))]


def _torchvision_network(name: str, *, num_classes: int, channels: int) -> nn.Module:
    # These two return more than logits while training unless told otherwise.
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    if channels != 3:
        _replace_first_convolution(network, channels)
    return network


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    first.in_channels = channels
    first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
