"""Splits: which images train, and which are held out for validation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rolekd_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint places in a training set, each sorted int64 (M,)."""

    train: Tensor
    validation: Tensor


def stratified_split(labels: Tensor, *, train: int | None, validation: int, seed: int) -> Split:
    """Draw disjoint training and validation images with the classes in the proportions of the whole.

    Sizes are exact; each class gets its share rounded down or up (largest remainder, ties to the lower label).
    The validation images depend on `labels`, `validation` and `seed` only, never on `train`: everybody who uses one
    seed holds out the same images. The draw is the same on every platform and NumPy version.

    Args:
        labels: (N,) integers.
        train: how many images train; None takes all that are left.
        validation: how many are held out; 0 holds out none.
        seed: a whole number of at least 0.

    Raises:
        DataError: with every number that does not fit.
    """
    classes = np.asarray(labels, dtype=np.int64)
    _check(len(classes), train, validation, seed)
    held_out, left = _take(_order(len(classes), seed), classes, validation)
    chosen, _ = _take(left, classes, len(left) if train is None else train)
    return Split(train=torch.from_numpy(np.sort(chosen)), validation=torch.from_numpy(np.sort(held_out)))


def stratified_subset(labels: Tensor, places: Tensor, *, size: int, seed: int) -> Tensor:
    """Draw some of the images at `places` with the classes in their proportions; sorted int64 (size,).

    Of all images that are not held out it draws those that `stratified_split` draws to train.

    Args:
        labels: (N,) integers of the whole set.
        places: (M,) int64, to draw from.
        size: at least 1.
        seed: as in `stratified_split`.

    Raises:
        DataError: there are fewer, or so few are drawn that a class would be lost.
    """
    if size > len(places):
        raise DataError(
            f"data.train or final.train: got {size}; expected at most {len(places)}, which validation and imbalance "
            "leave"
        )
    classes = np.asarray(labels, dtype=np.int64)
    among = np.zeros(len(classes), dtype=bool)
    among[np.asarray(places)] = True
    order = _order(len(classes), seed)
    chosen, _ = _take(order[among[order]], classes, size)
    lost = np.setdiff1d(classes[among], classes[chosen])
    if len(lost):
        raise DataError(
            f"data.train or final.train: got {size}, which leaves none of label {', '.join(map(str, lost))}; "
            "expected more, or less imbalance"
        )
    return torch.from_numpy(np.sort(chosen))


def _order(size: int, seed: int) -> np.ndarray:
    # Raw bits, since NumPy promises their stream for ever but not that of its shuffles (NEP 19)
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


def _take(order: np.ndarray, classes: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Part `order` into its first images of each class, `total` in all, and the rest."""
    of_class = classes[order]
    names, counts = np.unique(of_class, return_counts=True)
    shares = _largest_remainder(counts, total)
    taken = np.zeros(len(order), dtype=bool)
    for name, share in zip(names, shares, strict=True):
        taken[np.flatnonzero(of_class == name)[:share]] = True
    return order[taken], order[~taken]


def _largest_remainder(counts: np.ndarray, total: int) -> np.ndarray:
    if total == 0:
        return np.zeros_like(counts)
    shares, remainders = np.divmod(counts * total, counts.sum())  # whole numbers: no rounding error can move an image
    most = np.argsort(-remainders, kind="stable")[: total - shares.sum()]
    shares[most] += 1
    return shares


def _check(size: int, train: int | None, validation: int, seed: int) -> None:
    problems = []
    if validation < 0:
        problems.append(f"data.validation: got {validation}; expected at least 0")
    if train is not None and train < 1:
        problems.append(f"data.train: got {train}; expected at least 1, or none for all that are left")
    if seed < 0:
        problems.append(f"data.split_seed: got {seed}; expected at least 0")
    if not problems and (train or 1) + validation > size:
        wanted = f"train {'all that are left' if train is None else train} and validation {validation}"
        problems.append(
            f"split: too few images, got {wanted}; expected at most {size} together, 1 or more for training"
        )
    if problems:
        raise DataError(*problems)
