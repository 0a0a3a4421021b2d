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


def pairs_for(
    method: Method,
    student: nn.Module,
    teacher: nn.Module,
    *,
    of_student: Sequence[str] | None = None,
    of_teacher: Sequence[str] | None = None,
) -> LayerPairs:
    """Return the layers that a method takes: those that are named, and a network's defaults where none are.

    Where the numbers differ, layers are paired from the deep end, and shallow defaults are left out. A method that
    teaches itself takes the student's for both.

    Raises:
        ConfigError: a network has no defaults, as torchvision's, or fewer than are named of the other.
    """
    own = list(of_student) if of_student is not None else _defaults(method, student, Role.STUDENT)
    if method.online == "self":
        return own, own
    theirs = list(of_teacher) if of_teacher is not None else _defaults(method, teacher, Role.TEACHER)
    count = min(len(own), len(theirs))
    for role, named, layers in ((Role.STUDENT, of_student, own), (Role.TEACHER, of_teacher, theirs)):
        if named is not None and len(layers) > count:
            raise ConfigError(
                f"distill.layers.{method.name}.{role}: got {len(layers)} layers; expected at most {count}, as many as "
                "the other network has by default"
            )
    return own[len(own) - count :], theirs[len(theirs) - count :]


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
