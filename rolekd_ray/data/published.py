"""Published data sets that torchvision knows how to fetch, check and read."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from rolekd_ray.data.decode import Listing, Source
from rolekd_ray.errors import DataError


def cifar10(path: Path, split: str, download: bool) -> Source:
    """CIFAR-10: 50,000 + 10,000 colour images of 32x32."""
    return _cifar(datasets.CIFAR10, path, split, download)


def cifar100(path: Path, split: str, download: bool) -> Source:
    """CIFAR-100 (fine labels): 50,000 + 10,000 colour images of 32x32."""
    return _cifar(datasets.CIFAR100, path, split, download)


def svhn(path: Path, split: str, download: bool) -> Source:
    """SVHN, cropped digits: 73,257 + 26,032 colour images of 32x32; the digit 0 has label 0."""
    files = (path / datasets.SVHN.split_list[split][1],)
    return _source("svhn", files, partial(datasets.SVHN, path, split=split), download)


def fashion_mnist(path: Path, split: str, download: bool) -> Source:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28x28."""
    stem = {"train": "train", "test": "t10k"}[split]
    raw = path / "FashionMNIST" / "raw"
    files = (raw / f"{stem}-images-idx3-ubyte", raw / f"{stem}-labels-idx1-ubyte")
    return _source("fashion_mnist", files, partial(datasets.FashionMNIST, path, train=split == "train"), download)


def _cifar(kind: Any, path: Path, split: str, download: bool) -> Source:
    parts = kind.train_list if split == "train" else kind.test_list
    files = tuple(path / kind.base_folder / name for name, _ in [*parts, [kind.meta["filename"], None]])
    return _source(kind.__name__.lower(), files, partial(kind, path, train=split == "train"), download)


def _source(name: str, files: tuple[Path, ...], make: partial, download: bool) -> Source:
    if not all(file.is_file() for file in files):
        _make(name, make, download)  # fetches, or says what is missing
    return Source(files, lambda: _read(_make(name, make, download)))


def _make(name: str, make: partial, download: bool) -> Any:
    folder = make.args[0]
    try:
        return make(download=download)
    except ImportError as problem:
        raise DataError(
            f"{name}: torchvision needs another package to read it: {problem}. Try: pip install scipy"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as problem:
        detail = " ".join(str(problem).split()).removesuffix(" You can use download=True to download it")
        hint = "" if download else " Set data.download to true to fetch it."
        raise DataError(f"{folder}: {name} is not there or damaged: {detail}{hint}") from problem


def _read(dataset: Any) -> Listing:
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets, dtype=np.int64)
    names = getattr(dataset, "classes", None) or [str(label) for label in range(10)]
    return Listing(tuple(names), labels, partial(_pictures, dataset))


def _pictures(dataset: Any) -> Iterator[tuple[str, Image.Image]]:
    name = type(dataset).__name__
    for row in range(len(dataset)):
        yield f"{name} image {row}", dataset[row][0]
