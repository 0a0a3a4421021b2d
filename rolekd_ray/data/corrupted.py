"""Published corrupted test sets in the format of CIFAR-10-C: `<corruption>.npy` and `labels.npy` in one folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rolekd_ray.errors import DataError

SEVERITIES = 5
LABELS = "labels.npy"


@dataclass(frozen=True, eq=False)
class CorruptedSets:
    """A corrupted test set; images stay on disk until they are asked for.

    Attributes:
        pictures: per corruption, (5 M, H, W, 3) uint8, the five severities one after the other.
        labels: (5 M,) int64.
    """

    pictures: dict[str, np.ndarray]
    labels: np.ndarray

    def parts(self, name: str, limit: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first images (n, 3, H, W) uint8 of each severity of a corruption, n at most `limit`; and labels."""
        images = len(self.labels) // SEVERITIES
        for start in range(0, SEVERITIES * images, images):
            part = slice(start, start + min(limit, images))
            pictures = torch.from_numpy(np.array(self.pictures[name][part]))
            yield pictures.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(self.labels[part])


def open_corrupted(folder: Path, *, num_classes: int, image_size: tuple[int, int]) -> CorruptedSets:
    """Open a folder like CIFAR-10-C: 19 corruptions of 10,000 images, 5 severities each; any other number is fine.

    Args:
        folder: holds the files.
        num_classes: labels must lie below.
        image_size: height and width that the images must have.

    Raises:
        DataError: what is missing or of another format; all problems at once.

    Source: Hendrycks & Dietterich, arXiv 1903.12261; the format is that of the files they published.
    """
    files = sorted(folder.glob("*.npy")) if folder.is_dir() else []
    names = [file for file in files if file.name != LABELS]
    if not names:
        raise DataError(f"{folder}: got no corruptions; expected a folder with files like gaussian_noise.npy")
    problems: list[str] = []
    labels, rows = _open(folder / LABELS, problems), None
    if labels is not None:
        wrong = _label_problems(folder / LABELS, labels, num_classes)
        problems += wrong
        rows = None if wrong else len(labels)
    pictures = {}
    for file in names:
        images = _open(file, problems)
        if images is not None:
            problems += _picture_problems(file, images, rows, image_size)
            pictures[file.stem] = images
    if problems:
        raise DataError(*problems)
    assert labels is not None
    return CorruptedSets(pictures, labels.astype(np.int64))


def _open(file: Path, problems: list[str]) -> np.ndarray | None:
    """Map an array into memory; nothing in the file is run."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        problems.append(f"{file}: got no such file; expected an array")
    except (OSError, ValueError, EOFError) as problem:
        problems.append(f"{file}: not an array that can be read: {' '.join(str(problem).split())}")
    return None


def _label_problems(file: Path, labels: np.ndarray, num_classes: int) -> list[str]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or len(labels) % SEVERITIES:
        return [f"{file}: got {_kind(labels)}; expected (5 M,) of whole numbers, five severities of M images"]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        return [f"{file}: got labels from {low} to {high}; expected 0 to {num_classes - 1}"]
    return []


def _picture_problems(file: Path, images: np.ndarray, rows: int | None, image_size: tuple[int, int]) -> list[str]:
    expected = (len(images) if rows is None and images.ndim else rows, *image_size, 3)
    if images.dtype != np.uint8 or images.shape != expected:
        wanted = f"({'5 M' if rows is None else rows}, {image_size[0]}, {image_size[1]}, 3) uint8"
        return [f"{file}: got {_kind(images)}; expected {wanted}"]
    return []


def _kind(array: np.ndarray) -> str:
    return f"{array.shape} {array.dtype}"
