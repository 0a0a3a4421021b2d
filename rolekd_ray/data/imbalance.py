"""Class imbalance: fewer images of each class than of the one before."""

import math

import numpy as np
import torch
from torch import Tensor

from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.config import ExponentialSettings, PowerLawSettings
from rolekd_ray.errors import DataError


def power_law_counts(num_classes: int, *, n_max: int, n_min: int, gamma: float) -> list[int]:
    """Return how many images each class keeps: n_c = a / (b + c^gamma), rounded to the nearest, half to even.

    a and b are such that the first class keeps n_max and the last n_min; a smaller gamma falls more steeply.

    Args:
        num_classes: K, at least 2.
        n_max: at least n_min.
        n_min: at least 1.
        gamma: above 0.

    Source: the code of the authors of arXiv 2007.01922; not verified against the paper's text. With a and b put in and
    g_c = (c^gamma - 1) / (K^gamma - 1), the same is n_max n_min / (n_min + (n_max - n_min) g_c), which needs no
    difference of large or nearly equal numbers.
    """
    last = math.log(num_classes)
    counts = []
    for c in range(1, num_classes + 1):
        place = math.log(c)
        g = math.exp(gamma * (place - last)) * math.expm1(-gamma * place) / math.expm1(-gamma * last)
        counts.append(round(n_max * n_min / (n_min + (n_max - n_min) * g)))
    return counts


def exponential_counts(num_classes: int, *, n_max: int, ratio: float) -> list[int]:
    """Return how many images each class keeps: n_c = n_max ratio^(-(c-1)/(K-1)), rounded down as by the usual code.

    Args:
        num_classes: K, at least 2.
        n_max: of the first class.
        ratio: of the first class's count to the last one's, at least 1.

    Source: Cui et al. 2019 (arXiv 1901.05555), "long-tailed CIFAR".
    """
    return [int(n_max / ratio ** (c / (num_classes - 1))) for c in range(num_classes)]


def imbalanced(
    labels: Tensor, places: Tensor, class_names: tuple[str, ...], settings: PowerLawSettings | ExponentialSettings
) -> Tensor:
    """Return the places that imbalance leaves, sorted int64.

    Which images of a class stay: the first of `places` in the file's order, or of a random order that depends on the
    settings' seed alone. Either way a smaller count keeps a part of what a larger one keeps.

    Args:
        labels: (N,) int64 of the whole file.
        places: (M,) int64, the images there are to choose from.
        class_names: one per class, at least 2.
        settings: `n_max` None stands for the size of the smallest class.

    Raises:
        DataError: with every class that would be empty or has too few images, or because n_min is more than the
            smallest class has.
    """
    places = places.sort().values
    available = labels[places].bincount(minlength=len(class_names)).tolist()
    _check_there(available, class_names)
    counts = _counts(available, settings)
    _check_fit(counts, available, class_names)
    order = places.numpy()
    if settings.images == "random":
        drawn = uniforms(stream_key("imbalance", settings.seed), places, 2).double().numpy()
        order = order[np.argsort(drawn[:, 0] + drawn[:, 1] * 2.0**-24, kind="stable")]  # 48 bits: hardly a tie
    of_class = labels.numpy()[order]
    kept = [order[of_class == name][:count] for name, count in enumerate(counts)]
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def _check_there(available: list[int], class_names: tuple[str, ...]) -> None:
    if len(class_names) < 2:
        raise DataError(f"data.imbalance: got {len(class_names)} class; expected at least 2")
    without = [name for name, there in zip(class_names, available, strict=True) if there == 0]
    if without:
        words = "has no image that is not held out; expected at least 1"
        raise DataError(*(f"data.imbalance: class {name!r} {words}" for name in without))


def _counts(available: list[int], settings: PowerLawSettings | ExponentialSettings) -> list[int]:
    n_max = min(available) if settings.n_max is None else settings.n_max
    if settings.kind == "exponential":
        return exponential_counts(len(available), n_max=n_max, ratio=settings.ratio)
    if n_max < settings.n_min:  # a given n_max was compared when the settings were read
        raise DataError(
            f"data.imbalance.n_min: got {settings.n_min}; expected at most {n_max}, the images that the smallest class "
            "has beside those held out"
        )
    return power_law_counts(len(available), n_max=n_max, n_min=settings.n_min, gamma=settings.gamma)


def _check_fit(counts: list[int], available: list[int], class_names: tuple[str, ...]) -> None:
    problems = []
    for name, count, there in zip(class_names, counts, available, strict=True):
        if count < 1:
            problems.append(f"data.imbalance: class {name!r} would be empty, got {count} images; expected at least 1")
        elif count > there:
            problems.append(
                f"data.imbalance: class {name!r} has too few images, got {there} that are not held out; expected at "
                f"least {count}"
            )
    if problems:
        raise DataError(*problems)
