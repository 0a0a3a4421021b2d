"""Evaluation of a finished network on validation and test. The only place that opens the test file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rolekd_ray.config import BaseAugmentationSettings, DataSettings
from rolekd_ray.errors import DataError
from rolekd_ray.models.ensemble import Combine, Ensemble
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.search.preflight import check_teachers
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
) -> dict[str, Any]:
    """Return a checkpoint's metrics on validation and test, and its agreement with a teacher on test.

    Args:
        folder: a finished network or a member's state; of several the ensemble is evaluated.
        data: the dataset; None: the one the (first) checkpoint was trained on, as it says itself.
        role: whose network, where the checkpoint holds two.
        teacher: another checkpoint to compare answers with, or several: their ensemble; None: what a single checkpoint
            names, if all of it lies there and in the same store: a checkpoint of unknown origin shall not say which
            server is asked.
        combine: how several checkpoints that are given here answer as one.
        moved: where the dataset lies now, if not where it was.

    Raises:
        CheckpointError: missing, damaged, or for other images; or others of an ensemble learned from images that were
            held out from the first.
        DataError: the dataset cannot be read.
    """
    first, *others = places(folder)
    network, description = load_network(first, role)
    data = data or DataSettings.model_validate_json(json.dumps(description["data"]))
    data = data if moved is None else data.model_copy(update={"path": moved.absolute()})
    mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
    nothing = BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0)
    views = Views(nothing, SearchSpace("none", ()), mean, std, seed=0)
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
    held_out = training.image_set.subset(training.validation)
    results: dict[str, Any] = {"seconds": None if others else description.get("metrics", {}).get("seconds")}
    logits = {}
    for name, part in (("validation", held_out), ("test", test)):
        logits[name] = predict(network, part.images, views, dtype=torch.float32)
        results |= {f"{name}_{key}": value for key, value in score(logits[name], part.labels).to_dict().items()}
    if teacher is None and not others:
        teacher, combine = _named_teacher(description, first)
    if teacher is not None:
        network = load_teacher(teacher, combine=combine, **sizes)
        results["test_teacher_agreement"] = agreement(
            logits["test"], predict(network, test.images, views, dtype=torch.float32)
        )
    return results


def _named_teacher(description: Mapping[str, Any], folder: Place) -> tuple[tuple[Place, ...] | None, Combine]:
    """Return the teacher that a checkpoint names, if each of its checkpoints lies there and in the same store."""
    named = description.get("teacher") or []
    found = tuple(place(where) for where in (named if isinstance(named, list) else [named]))
    near = all(same_store(where, folder) and has_checkpoint(where) for where in found)
    return found if found and near else None, "logits" if description.get("combine") == "logits" else "probabilities"
