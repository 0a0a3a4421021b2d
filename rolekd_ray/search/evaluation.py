"""Evaluation of a finished network on validation and test. The only place that opens the test file."""

import json
from pathlib import Path
from typing import Any

import torch

from rolekd_ray.config import BaseAugmentationSettings, DataSettings
from rolekd_ray.errors import DataError
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
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
) -> dict[str, Any]:
    """Return a checkpoint's metrics on validation and test, and its agreement with a teacher on test.

    Args:
        folder: a finished network or a member's state.
        data: the dataset; None: the one the checkpoint was trained on, as it says itself.
        role: whose network, where the checkpoint holds two.
        teacher: another checkpoint to compare answers with; None: the one the checkpoint names, if it lies there
            and in the same store: a checkpoint of unknown origin shall not say which server is asked.
        moved: where the dataset lies now, if not where it was.

    Raises:
        CheckpointError: missing, damaged, or for other images.
        DataError: the dataset cannot be read.
    """
    network, description = load_network(folder, role)
    data = data or DataSettings.model_validate_json(json.dumps(description["data"]))
    data = data if moved is None else data.model_copy(update={"path": moved.absolute()})
    mean, std = torch.tensor(description["mean"]), torch.tensor(description["std"])
    nothing = BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0)
    views = Views(nothing, SearchSpace("none", ()), mean, std, seed=0)
    training, test = open_training_data(data, train=None), open_images(data, "test")
    if test.channels != description["channels"] or test.num_classes > description["num_classes"]:
        raise DataError(
            f"{data.source}: got images of {test.channels} channels and {test.num_classes} classes; expected "
            f"{description['channels']} and {description['num_classes']}, for which {folder} was trained"
        )
    held_out = training.image_set.subset(training.validation)
    results: dict[str, Any] = {"seconds": description.get("metrics", {}).get("seconds")}
    logits = {}
    for name, part in (("validation", held_out), ("test", test)):
        logits[name] = predict(network, part.images, views, dtype=torch.float32)
        results |= {f"{name}_{key}": value for key, value in score(logits[name], part.labels).to_dict().items()}
    if teacher is None and description.get("teacher"):
        named = place(description["teacher"])
        teacher = named if same_store(named, folder) and has_checkpoint(named) else None
    if teacher is not None:
        channels, num_classes = description["channels"], description["num_classes"]
        network, _ = load_network(teacher, Role.TEACHER, channels=channels, num_classes=num_classes)
        results["test_teacher_agreement"] = agreement(
            logits["test"], predict(network, test.images, views, dtype=torch.float32)
        )
    return results
