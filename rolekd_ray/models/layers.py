"""Layers of a network by name: which ones distillation compares by default, and what there is to choose from."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rolekd_ray.errors import ConfigError

LayerRow = tuple[str, str, tuple[int, ...] | str]
"""A module's name, its kind, and the shape of its output without the batch, or words for what is no tensor."""


@dataclass(frozen=True)
class DefaultLayers:
    """What losses on features compare in one network, by names of its modules.

    Our networks carry theirs as the attribute `layers`, so copies have it too.

    Args:
        stages: modules whose outputs are the feature maps (N, C, H, W) after each stage, shallow to deep.
        embedding: what the last linear layer takes, (N, D): the module's name and `.input`.

    Source: the features 1 to n of the CRD benchmark's networks (RepDistiller); its feature 0, the stem, is left out.
    """

    stages: tuple[str, ...]
    embedding: str = "classifier.input"


def default_layers(network: nn.Module) -> DefaultLayers | None:
    """Return a network's default layers; None for networks that are not of our zoo, such as torchvision's."""
    layers = getattr(network, "layers", None)
    return layers if isinstance(layers, DefaultLayers) else None


def layer_names(network: nn.Module) -> list[str]:
    """Return the name of every module that can be called, so that its input and output can be captured."""
    return [
        name
        for name, module in network.named_modules()
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    ]


def layer_table(network: nn.Module, channels: int, image_size: tuple[int, int]) -> list[LayerRow]:
    """Return one row for each module that a forward pass calls, in the order of their names in the network.

    Found by one pass of two zero images in evaluation mode; the network and its modes are the same afterwards. Of a
    module that is called several times the first output counts.

    Args:
        network: any, on any device.
        channels: of the images.
        image_size: height and width in pixels.

    Raises:
        ConfigError: the network cannot take such images.
    """
    some = next(network.parameters())
    images = torch.zeros(2, channels, *image_size, device=some.device, dtype=some.dtype)
    outputs: dict[str, tuple[int, ...] | str] = {}

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        outputs.setdefault(name, _described(output))

    modules = {name: network.get_submodule(name) for name in layer_names(network)}
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        with _evaluating(network), torch.no_grad():
            network(images)
    except RuntimeError as problem:
        size = f"{image_size[1]}x{image_size[0]}"
        raise ConfigError(f"network: cannot take images of {size} pixels: {problem}") from problem
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, type(module).__name__, outputs[name]) for name, module in modules.items() if name in outputs]


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _described(output: Any) -> tuple[int, ...] | str:
    match output:
        case Tensor():
            return tuple(output.shape[1:])
        case Mapping():
            return "dict of " + ", ".join(f"{key}: {_described(value)}" for key, value in output.items())
        case Sequence() if not isinstance(output, str):
            return f"{type(output).__name__} of " + ", ".join(str(_described(value)) for value in output)
    return type(output).__name__
