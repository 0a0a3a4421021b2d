"""Image sets as folders of pictures, one per class, in torchvision's ImageFolder layout."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from rolekd_ray.data.decode import Listing, Source, open_picture
from rolekd_ray.errors import DataError


def image_folder(path: Path, split: str) -> Source:
    """Find a split in `path/train/<class>/*.png` or `path/test/<class>/*.png` (any extension torchvision knows).

    Classes are numbered in the sorted order of the training folders, for both splits.

    Raises:
        DataError: a folder is missing or empty, or the test split has a class that the training split lacks.
    """
    folder = path / split
    if not folder.is_dir():
        there = ", ".join(sorted(item.name for item in path.glob("*"))[:8]) or "nothing"
        raise DataError(f"{path}: no folder of split {split!r}, got {there}; expected {split}/<class>/*.png")
    own = _classes(folder)
    classes = _classes(path / "train") or own
    unknown = sorted(set(own) - set(classes))
    if unknown:
        raise DataError(f"{folder}: got classes {', '.join(unknown)}; expected those of train: {', '.join(classes)}")
    numbers = {name: number for number, name in enumerate(classes)}
    samples = make_dataset(folder, numbers, extensions=IMG_EXTENSIONS, allow_empty=True) if own else []
    if not samples:
        raise DataError(f"{folder}: no pictures; expected <class>/*{', *'.join(IMG_EXTENSIONS)}")
    files = tuple(Path(file) for file, _ in samples)
    listing = Listing(tuple(classes), np.array([label for _, label in samples]), partial(_pictures, files))
    return Source(files, lambda: listing)


def _classes(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir()) if folder.is_dir() else []


def _pictures(files: tuple[Path, ...]) -> Iterator[tuple[str, Image.Image]]:
    for file in files:
        yield str(file), open_picture(file, str(file))
