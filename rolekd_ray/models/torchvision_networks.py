"""torchvision's networks, with fresh weights, for colour or grey images."""

from functools import cache

import torchvision
from torch import nn


@cache
def torchvision_names() -> tuple[str, ...]:
    """Return the names of those that follow a data set's image size: transformers tied to one size do not."""
    names = torchvision.models.list_models(module=torchvision.models)
    return tuple(name for name in names if not name.startswith(("vit_", "maxvit")))


def torchvision_network(name: str, *, num_classes: int, channels: int) -> nn.Module:
    """Build one by its name there; it returns logits alone, in training too.

    Args:
        name: one of `torchvision_names()`.
        num_classes: K.
        channels: of the images; for 1 the first convolution is another one.
    """
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
