"""Which layers a method looks at, and what shapes they have."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from rolekd_ray.distill.capture import Capture
from rolekd_ray.distill.registry import Method
from rolekd_ray.errors import ConfigError
from rolekd_ray.models.layers import DefaultLayers, default_layers
from rolekd_ray.roles import Role

LOGITS = "logits"
"""Stands for the network's own output among layer names."""

LayerPairs = tuple[Sequence[str], Sequence[str]]
"""Names of the student's layers, and of the teacher's, pairwise."""


def default_pairs(method: Method, student: nn.Module, teacher: nn.Module) -> LayerPairs:
    """Return the layers that a method takes by default.

    Networks of different numbers of stages are paired from the deep end.

    Raises:
        ConfigError: a network has no defaults, as torchvision's.
    """
    sides = [_defaults(method, student, Role.STUDENT), _defaults(method, teacher, Role.TEACHER)]
    count = min(map(len, sides))
    return sides[0][len(sides[0]) - count :], sides[1][len(sides[1]) - count :]


def _defaults(method: Method, network: nn.Module, role: Role) -> list[str]:
    if method.layers == LOGITS:
        return [LOGITS]
    found = default_layers(network)
    if found is None:
        raise ConfigError(
            f"distill.layers.{method.name}: got none; expected names of layers of the student and the teacher, for "
            f"the {role}'s {type(network).__name__} has no defaults (rolekd check --layers MODEL lists them)"
        )
    return _of_kind(method, found)


def _of_kind(method: Method, found: DefaultLayers) -> list[str]:
    stages = list(found.stages)
    return {
        "stages": stages,
        "hint": [stages[(len(stages) - 1) // 2]],
        "split": [stages[max(0, len(stages) - 2)]],
        "last": [stages[-1]],
        "embedding": [found.embedding],
    }[method.layers]


def feature_shapes(
    network: nn.Module, layers: Iterable[str], *, channels: int, image_size: tuple[int, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes, without the batch, of layers and of `logits`, from one pass of two black images.

    The network comes back in its own mode; its buffers are untouched.

    Raises:
        ConfigError: unknown layers, or layers that are not called.
    """
    weight = next(network.parameters())
    capture, training = Capture(network, [layer for layer in layers if layer != LOGITS]), network.training
    network.eval()
    with torch.no_grad(), capture:
        logits = network(torch.zeros(2, channels, *image_size, device=weight.device, dtype=weight.dtype))
    network.train(training)
    return {LOGITS: tuple(logits.shape[1:])} | {name: tuple(f.shape[1:]) for name, f in capture.features.items()}
