"""Where images come from, by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rolekd_ray.data.cache import cached, entry_name
from rolekd_ray.data.decode import Source, decode
from rolekd_ray.data.folders import image_folder
from rolekd_ray.data.images import ImageSet
from rolekd_ray.data.parquet import parquet
from rolekd_ray.data.published import cifar10, cifar100, fashion_mnist, svhn
from rolekd_ray.errors import DataError, unknown_name

DIGITS = Path(__file__).parent / "digits"

# name -> (folder, split, whether it may be downloaded) -> files and reader
SOURCES: dict[str, Callable[[Path, str, bool], Source]] = {
    "digits": lambda path, split, download: parquet(path, split),
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "fashion_mnist": fashion_mnist,
    "parquet": lambda path, split, download: parquet(path, split),
    "image_folder": lambda path, split, download: image_folder(path, split),
}


def load_image_set(
    source: str,
    path: Path | None,
    *,
    split: Literal["train", "test"],
    download: bool = False,
    image_size: int | None = None,
) -> ImageSet:
    """Return one split of a source, decoded; from the cache if it was decoded before (`cache.cached`).

    Sources: `digits` (bundled, 8x8 grey); `cifar10`, `cifar100`, `svhn`, `fashion_mnist` (torchvision's files);
    `parquet` (a folder of `train*.parquet` and `test*.parquet` in the Hugging Face convention); `image_folder`
    (`train/<class>/*.png`, `test/<class>/*.png`).

    Args:
        source: one of `SOURCES`.
        path: the folder; None for `digits`.
        split: `train` or `test`.
        download: whether torchvision may fetch what `path` lacks; no other source downloads.
        image_size: pixels; scales the short side to it and crops the centre. None keeps the pictures' own size, which
            must then be the same for all.

    Raises:
        DataError: the source is unknown, missing, damaged, empty, or its pictures or labels are wrong.
    """
    _check(source, path, split, image_size)
    folder = DIGITS if source == "digits" else Path(path or "").expanduser()
    if not folder.is_dir() and not download:
        raise DataError(f"data.path: no such folder, got {folder}; expected the folder of source {source!r}")
    found = SOURCES[source](folder, split, download)

    def build(allocate):
        listing = found.read()
        return decode(listing, image_size, allocate), listing.labels, listing.class_names

    settings = {"source": source, "split": split, "image_size": image_size}
    return cached(f"{source} {split}", entry_name(f"{source}-{split}", settings, found.files), build)


def _check(source: str, path: Path | None, split: str, image_size: int | None) -> None:
    problems = []
    if source not in SOURCES:
        problems.append(unknown_name("data.source", "source", source, SOURCES))
    elif source == "digits" and path is not None:
        problems.append(f"data.path: source 'digits' is bundled, got {str(path)!r}; expected none")
    elif source != "digits" and path is None:
        problems.append(f"data.path: got none; expected the folder of source {source!r}")
    if split not in ("train", "test"):
        problems.append(unknown_name("data.split", "split", split, ("train", "test")))
    if image_size is not None and image_size < 1:
        problems.append(f"data.image_size: got {image_size}; expected at least 1 pixel, or none")
    if problems:
        raise DataError(*problems)
