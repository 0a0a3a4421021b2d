"""Finished networks: writing them for anyone to use, reading them back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rolekd_ray.config import DataSettings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.errors import CheckpointError
from rolekd_ray.models.ensemble import Combine, Ensemble
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.storage import Place, places
from rolekd_ray.training.checkpoint import load_checkpoint
from rolekd_ray.training.learner import load_weights


def describe_networks(
    models: Mapping[Role, str],
    image_set: ImageSet,
    statistics: tuple[Tensor, Tensor],
    data: DataSettings,
    trained_on: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint must say so that its networks can be rebuilt and fed, and, if given, what they saw.

    `trained_on` is from `describe_images`.
    """
    mean, std = statistics
    seen = {} if trained_on is None else {"trained_on": dict(trained_on)}
    return seen | {
        "models": {str(role): model for role, model in models.items()},
        "num_classes": image_set.num_classes,
        "class_names": list(image_set.class_names),
        "channels": image_set.channels,
        "image_size": list(image_set.image_size),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "data": data.model_dump(mode="json"),
    }


def load_network(
    folder: Place, role: Role, *, model: str | None = None, num_classes: int | None = None, channels: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (network in evaluation mode, description) of a checkpoint or a member's state.

    Args:
        folder: the checkpoint.
        role: whose network; a checkpoint of one network gives that one, whatever its role.
        model: expected architecture; None: any.
        num_classes: expected outputs; None: any.
        channels: expected input channels; None: any.

    Raises:
        CheckpointError: missing, damaged, or not the expected network.
    """
    tree, description = load_checkpoint(folder)
    networks = tree.get("networks", {})
    name = str(role) if role in networks else next(iter(networks), None) if len(networks) == 1 else None
    if "models" not in description:
        raise CheckpointError(f"{folder}: a training under way; expected a finished network or a member's state")
    if name is None:
        raise CheckpointError(f"{folder}: holds networks of {sorted(networks)}; expected one of the {role}")
    found = description["models"][name], description["num_classes"], description["channels"]
    for what, got, expected in zip(("model", "classes", "channels"), found, (model, num_classes, channels)):
        if expected is not None and got != expected:
            raise CheckpointError(f"{folder}: of another architecture: {what}: got {got!r}; expected {expected!r}")
    network = build_network(found[0], num_classes=found[1], channels=found[2])
    load_weights(network, networks[name], where=str(folder))
    return network.eval(), description


def load_teacher(
    where: Place | tuple[Place, ...],
    *,
    combine: Combine = "probabilities",
    model: str | None = None,
    num_classes: int,
    channels: int,
) -> nn.Module:
    """Return a finished teacher in evaluation mode: a checkpoint's network, or the ensemble of several.

    Args:
        where: the checkpoints. A place that stands twice counts twice.
        combine: how several answer as one, see `Ensemble`; of one alone it changes nothing.
        model: expected architecture of a single one; None: any. Members of an ensemble may differ from it and from
            each other.
        num_classes: expected outputs of each.
        channels: expected input channels of each.

    Raises:
        CheckpointError: some are missing, damaged, or not the expected network; names all of them.
    """
    folders = places(where)
    networks: list[nn.Module] = []
    problems: list[str] = []
    model = model if len(folders) == 1 else None
    for folder in folders:
        try:
            network, _ = load_network(folder, Role.TEACHER, model=model, num_classes=num_classes, channels=channels)
            networks.append(network)
        except CheckpointError as error:
            problems += error.problems
    if problems:
        raise CheckpointError(*problems)
    return networks[0] if len(networks) == 1 else Ensemble(networks, combine).eval()
