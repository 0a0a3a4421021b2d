"""The training set of a run as trainings use it: tensors, held-out validation, statistics."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rolekd_ray.config import DataSettings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.data.imbalance import imbalanced
from rolekd_ray.data.noise import noisy_labels
from rolekd_ray.data.sources import load_image_set
from rolekd_ray.data.splits import stratified_split, stratified_subset


@dataclass(frozen=True)
class TrainingData:
    """Images of the training file, and which of them are trained on and which decide.

    `train` and `validation` are disjoint int64 indices into `image_set`. Validation depends on the split's seed and
    size alone, so teacher, search and final trainings hold out the same images, under any noise and imbalance.
    `image_set` has the clean labels, which validation goes by; trainings go by `labels`.
    """

    image_set: ImageSet
    train: Tensor
    validation: Tensor
    noisy_labels: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """Labels to train with, (N,) int64: noisy if noise is asked for, but clean at `validation` in any case."""
        return self.image_set.labels if self.noisy_labels is None else self.noisy_labels

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, (C,) in 0..1, of all images that are not held out.

        Those that imbalance leaves out count too: all severities normalise alike, as where a dataset's usual constants
        are used, and a teacher of one can teach under another.
        """
        kept = torch.ones(len(self.image_set.labels), dtype=torch.bool)
        kept[self.validation] = False
        return self.image_set.statistics(kept.nonzero().flatten())


def open_training_data(settings: DataSettings, *, train: int | None) -> TrainingData:
    """Load the training file, split it, and bring in imbalance and noise; the test file stays closed.

    In this order: validation is held out from the whole file, whatever follows; imbalance thins the rest; of what it
    leaves, `train` are drawn in the classes' proportions; noise replaces labels, each by its image's number in the
    file, whatever the other settings.

    Args:
        settings: where the images are, how many are held out, noise and imbalance.
        train: how many to train on; None: all that are left.

    Raises:
        DataError: the data cannot be read, is too small, or does not allow this noise or imbalance.
    """
    image_set = open_images(settings, "train")
    labels, seed = image_set.labels, settings.split_seed
    thinned = settings.imbalance is not None
    split = stratified_split(labels, train=None if thinned else train, validation=settings.validation, seed=seed)
    chosen = split.train
    if settings.imbalance is not None:
        chosen = imbalanced(labels, chosen, image_set.class_names, settings.imbalance)
        chosen = chosen if train is None else stratified_subset(labels, chosen, size=train, seed=seed)
    noisy = None
    if settings.noise is not None:
        noisy = noisy_labels(labels, image_set.num_classes, settings.noise)
        noisy[split.validation] = labels[split.validation]
    return TrainingData(image_set, chosen, split.validation, noisy)


def open_images(settings: DataSettings, split: str) -> ImageSet:
    """Load one of the dataset's files, `train` or `test`."""
    return load_image_set(
        settings.source,
        settings.path,
        split=split,  # type: ignore[arg-type]
        download=settings.download,
        image_size=settings.image_size,
    )
