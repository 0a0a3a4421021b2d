"""Evaluation of a finished network on validation and test. The only place that opens the test file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rolekd_ray.config import BaseAugmentationSettings, DataSettings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.errors import DataError
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.robust_evaluation import LayerPairs, RobustEvaluation
from rolekd_ray.storage import Place, place, same_store
from rolekd_ray.training.checkpoint import has_checkpoint
from rolekd_ray.training.data import open_images, open_training_data
from rolekd_ray.training.evaluation import agreement, predict, score
from rolekd_ray.training.networks import load_network
from rolekd_ray.training.views import Views


def evaluate_checkpoint(
    folder: Place,
    data: DataSettings | None = None,
    *,
    role: Role = Role.STUDENT,
    teacher: Place | None = None,
    moved: Path | None = None,
    robustness: bool = False,
    corruptions: Path | None = None,
    layers: LayerPairs | None = None,
    images: int = 1000,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Return a checkpoint's metrics on validation and test, and its agreement with a teacher on both.

    Args:
        folder: a finished network or a member's state.
        data: the dataset; None: the one the checkpoint was trained on, as it says itself.
        role: whose network, where the checkpoint holds two.
        teacher: another checkpoint to compare answers with; None: the one the checkpoint names, if it lies there
            and in the same store: a checkpoint of unknown origin shall not say which server is asked.
        moved: where the dataset lies now, if not where it was.
        robustness: also what `RobustEvaluation` tells, on test images.
        corruptions: a folder like CIFAR-10-C; is used instead of the built-in corruptions, without `robustness` too.
        layers: pairs of layers whose similarity is measured, without `robustness` too; None: the networks' stages.
        images: how many test images, the first ones, these three take.
        tell: is told what is being done, for it may take minutes.

    Raises:
        CheckpointError: missing, damaged, or for other images.
        ConfigError: the networks have no such layers.
        DataError: the dataset, or the folder of corruptions, cannot be read.
    """
    network, description = load_network(folder, role)
    data = data or DataSettings.model_validate_json(json.dumps(description["data"]))
    data = data if moved is None else data.model_copy(update={"path": moved.absolute()})
    training, test = open_training_data(data, train=None), open_images(data, "test")
    if test.channels != description["channels"] or test.num_classes > description["num_classes"]:
        raise DataError(
            f"{data.source}: got images of {test.channels} channels and {test.num_classes} classes; expected "
            f"{description['channels']} and {description['num_classes']}, for which {folder} was trained"
        )
    parts = {"validation": training.image_set.subset(training.validation), "test": test}
    teaching = _teacher(folder, description, teacher)
    views = _clean_views(description)
    robust = RobustEvaluation(network, teaching, test, views, images, tell)
    more = robust.metrics(everything=robustness, corruptions=corruptions, layers=layers)
    tell("answers to clean images")
    return (
        {"seconds": description.get("metrics", {}).get("seconds"), "class_names": description["class_names"]}
        | _clean_metrics(network, teaching, parts, views)
        | more
    )


def _teacher(folder: Place, description: dict[str, Any], given: Place | None) -> nn.Module | None:
    """Return the given teacher, or the one the checkpoint names if it lies there."""
    if given is None and description.get("teacher"):
        named = place(description["teacher"])
        given = named if same_store(named, folder) and has_checkpoint(named) else None
    if given is None:
        return None
    channels, num_classes = description["channels"], description["num_classes"]
    return load_network(given, Role.TEACHER, channels=channels, num_classes=num_classes)[0]


def _clean_views(description: dict[str, Any]) -> Views:
    mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
    nothing = BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0)
    return Views(nothing, SearchSpace("none", ()), mean, std, seed=0)


def _clean_metrics(
    network: nn.Module, teacher: nn.Module | None, parts: dict[str, ImageSet], views: Views
) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, part in parts.items():
        logits = predict(network, part.images, views, dtype=torch.float32)
        results |= {f"{name}_{key}": value for key, value in score(logits, part.labels).to_dict().items()}
        if teacher is not None:
            other = predict(teacher, part.images, views, dtype=torch.float32)
            results[f"{name}_teacher_agreement"] = agreement(logits, other)
    return results
