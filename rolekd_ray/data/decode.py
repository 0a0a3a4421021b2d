"""Decoding: pictures of any source become one uint8 array."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from rolekd_ray.errors import DataError
from rolekd_ray.progress import advance

Allocate = Callable[[tuple[int, ...]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Listing:
    """What a source holds, before a pixel of it is decoded.

    Attributes:
        class_names: one per label.
        labels: (N,) int64, checked.
        pictures: starts over at each call and yields (where it lies, for messages; the picture), N of them.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    pictures: Callable[[], Iterator[tuple[str, Image.Image]]]


@dataclass(frozen=True)
class Source:
    """Files a source is made of (they decide whether a cached decoding is still good), and how to read them."""

    files: tuple[Path, ...]
    read: Callable[[], Listing]


class _ColourFound(Exception):
    """A grey set turns out to have a colour picture."""


def open_picture(data: bytes | Path, where: str) -> Image.Image:
    """Decode one picture.

    Raises:
        DataError: it is missing, no picture, truncated, or deeper than 8 bits.
    """
    try:
        picture = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data)
        picture.load()
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise DataError(f"{where}: not a picture that can be decoded: {problem}") from problem
    if picture.mode.startswith(("I", "F")):  # Pillow would clip these to 255 without a word
        raise DataError(f"{where}: got pixels of mode {picture.mode!r}; expected 8 bits per channel")
    return picture


def decode(listing: Listing, image_size: int | None, allocate: Allocate) -> np.ndarray:
    """Decode all pictures into an array (N, C, H, W) uint8 that `allocate` makes.

    C is 1 if every picture is grey (mode L or 1), else 3 (RGB; a palette is resolved, an alpha channel dropped).
    `image_size` scales the short side to that many pixels (Pillow's bilinear filter) and crops the centre; without it
    all pictures must have one size.

    Raises:
        DataError: a picture cannot be decoded or has another size; names the first.
    """
    try:
        return _fill(listing, image_size, allocate, grey=True)
    except _ColourFound:
        return _fill(listing, image_size, allocate, grey=False)


def _fill(listing: Listing, image_size: int | None, allocate: Allocate, *, grey: bool) -> np.ndarray:
    array, first = None, ""
    for row, (where, picture) in enumerate(listing.pictures()):
        if grey and picture.mode not in ("L", "1"):
            raise _ColourFound
        pixels = _pixels(picture.convert("L" if grey else "RGB"), image_size)
        if array is None:
            array, first = allocate((len(listing.labels), *pixels.shape)), where
        if pixels.shape != array.shape[1:]:
            raise DataError(
                f"{where}: got {pixels.shape[2]}x{pixels.shape[1]} pixels; expected {array.shape[3]}x{array.shape[2]} "
                f"as of {first}. Set image_size to bring all pictures to one size."
            )
        array[row] = pixels
        advance()
    assert array is not None and row + 1 == len(array), "a listing yields as many pictures as labels"
    return array


def _pixels(picture: Image.Image, image_size: int | None) -> np.ndarray:
    if image_size is not None and picture.size != (image_size, image_size):
        picture = transforms.resize(picture, image_size, InterpolationMode.BILINEAR)
        picture = transforms.center_crop(picture, image_size)
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
