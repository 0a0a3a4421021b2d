"""Evaluation of a finished network on validation and test. The only place that opens the test file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rolekd_ray.config import BaseAugmentationSettings, DataSettings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.errors import DataError
from rolekd_ray.models.ensemble import Combine, Ensemble
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.preflight import check_teachers
from rolekd_ray.search.robust_evaluation import LayerPairs, RobustEvaluation
from rolekd_ray.storage import Place, place, places, same_store
from rolekd_ray.training.checkpoint import has_checkpoint
from rolekd_ray.training.data import open_images, open_training_data
from rolekd_ray.training.evaluation import agreement, predict, score
from rolekd_ray.training.networks import load_network, load_teacher
from rolekd_ray.training.views import Views


def evaluate_checkpoint(
    folder: Place | tuple[Place, ...],
    data: DataSettings | None = None,
    *,
    role: Role = Role.STUDENT,
    teacher: Place | tuple[Place, ...] | None = None,
    combine: Combine = "probabilities",
    moved: Path | None = None,
    robustness: bool = False,
    corruptions: Path | None = None,
    layers: LayerPairs | None = None,
    images: int = 1000,
    tell: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Return a checkpoint's metrics on validation and test, and its agreement with a teacher on both.

    Args:
        folder: a finished network or a member's state; of several the ensemble is evaluated.
        data: the dataset; None: the one the (first) checkpoint was trained on, as it says itself.
        role: whose network, where the checkpoint holds two.
        teacher: another checkpoint to compare answers with, or several: their ensemble; None: what a single checkpoint
            names, if all of it lies there and in the same store: a checkpoint of unknown origin shall not say which
            server is asked.
        combine: how several checkpoints that are given here answer as one.
        moved: where the dataset lies now, if not where it was.
        robustness: also what `RobustEvaluation` tells, on test images.
        corruptions: a folder like CIFAR-10-C; is used instead of the built-in corruptions, without `robustness` too.
        layers: pairs of layers whose similarity is measured, without `robustness` too; None: the networks' stages.
        images: how many test images, the first ones, these three take.
        tell: is told what is being done, for it may take minutes.

    Raises:
        CheckpointError: missing, damaged, or for other images; or others of an ensemble learned from images that were
            held out from the first.
        ConfigError: the networks have no such layers, or there is no teacher to compare them with.
        DataError: the dataset, or the folder of corruptions, cannot be read.
    """
    first, *others = places(folder)
    network, description = load_network(first, role)
    data = data or DataSettings.model_validate_json(json.dumps(description["data"]))
    data = data if moved is None else data.model_copy(update={"path": moved.absolute()})
    training, test = open_training_data(data, train=None), open_images(data, "test")
    sizes = {"channels": description["channels"], "num_classes": description["num_classes"]}
    if others:
        check_teachers(others, data, training)
        network = Ensemble([network, *(load_network(other, role, **sizes)[0] for other in others)], combine).eval()
    if test.channels != description["channels"] or test.num_classes > description["num_classes"]:
        raise DataError(
            f"{data.source}: got images of {test.channels} channels and {test.num_classes} classes; expected "
            f"{description['channels']} and {description['num_classes']}, for which {first} was trained"
        )
    parts = {"validation": training.image_set.subset(training.validation), "test": test}
    if teacher is None and not others:
        teacher, combine = _named_teacher(description, first)
    teaching = load_teacher(teacher, combine=combine, **sizes) if teacher is not None else None
    views = _clean_views(description)
    robust = RobustEvaluation(network, teaching, test, views, images, tell)
    more = robust.metrics(everything=robustness, corruptions=corruptions, layers=layers)
    tell("answers to clean images")
    seconds = None if others else description.get("metrics", {}).get("seconds")
    return (
        {"seconds": seconds, "class_names": description["class_names"]}
        | _clean_metrics(network, teaching, parts, views)
        | more
    )


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


def _named_teacher(description: Mapping[str, Any], folder: Place) -> tuple[tuple[Place, ...] | None, Combine]:
    """Return the teacher that a checkpoint names, if each of its checkpoints lies there and in the same store."""
    named = description.get("teacher") or []
    found = tuple(place(where) for where in (named if isinstance(named, list) else [named]))
    near = all(same_store(where, folder) and has_checkpoint(where) for where in found)
    return found if found and near else None, "logits" if description.get("combine") == "logits" else "probabilities"
