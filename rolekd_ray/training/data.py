"""The training set of a run as trainings use it: tensors, held-out validation, statistics."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rolekd_ray.config import DataSettings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.data.sources import load_image_set
from rolekd_ray.data.splits import stratified_split


@dataclass(frozen=True)
class TrainingData:
    """Images of the training file, and which of them are trained on and which decide.

    `train` and `validation` are disjoint int64 indices into `image_set`. Validation depends on the split's seed and
    size alone, so teacher, search and final trainings hold out the same images.
    """

    image_set: ImageSet
    train: Tensor
    validation: Tensor

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, (C,) in 0..1, of all images that are not held out."""
        kept = torch.ones(len(self.image_set.labels), dtype=torch.bool)
        kept[self.validation] = False
        return self.image_set.statistics(kept.nonzero().flatten())


def open_training_data(settings: DataSettings, *, train: int | None) -> TrainingData:
    """Load the training file and split it; the test file stays closed.

    Args:
        settings: where the images are and how many are held out.
        train: how many to train on; None: all that are not held out.

    Raises:
        DataError: the data cannot be read or is too small.
    """
    image_set = open_images(settings, "train")
    split = stratified_split(image_set.labels, train=train, validation=settings.validation, seed=settings.split_seed)
    return TrainingData(image_set, split.train, split.validation)


def open_images(settings: DataSettings, split: str) -> ImageSet:
    """Load one of the dataset's files, `train` or `test`."""
    return load_image_set(
        settings.source,
        settings.path,
        split=split,  # type: ignore[arg-type]
        download=settings.download,
        image_size=settings.image_size,
    )
