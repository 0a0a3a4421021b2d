"""Ops that move pixels, equal to Pillow's nearest-neighbour transforms on every pixel.

Pillow maps each pixel of the result to one of the source by an affine map in 16.16 fixed point; so do we. Magnitudes
may be float64: a slope such as 0.27 then meets Pillow's rounding exactly.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

_ONE = 1 << 16


def rotate(images: Tensor, degrees: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Turn each image counter-clockwise about its centre; degrees (N,). Source: `PIL.Image.rotate`."""
    height, width = images.shape[-2:]
    # Pillow rounds sine and cosine to 15 digits, so that right angles are exact.
    angle = -degrees.double() * (math.pi / 180)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)
    x, y = width / 2, height / 2
    return _transformed(images, (cos, sin, cos * -x + sin * -y + x, -sin, cos, sin * x + cos * -y + y), fill)


def shear_x(images: Tensor, slopes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Shift row y by slope * y pixels to the left; slopes (N,). Source: PBA, `AFFINE (1, slope, 0, 0, 1, 0)`."""
    return _transformed(images, (1.0, slopes.double(), 0.0, 0.0, 1.0, 0.0), fill)


def shear_y(images: Tensor, slopes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Shift column x by slope * x pixels upwards; slopes (N,). Source: PBA, `AFFINE (1, 0, 0, slope, 1, 0)`."""
    return _transformed(images, (1.0, 0.0, 0.0, slopes.double(), 1.0, 0.0), fill)


def translate_x(images: Tensor, pixels: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Shift each image to the left by pixels (N,). Source: PBA, `AFFINE (1, 0, pixels, 0, 1, 0)`."""
    return _transformed(images, (1.0, 0.0, pixels.double(), 0.0, 1.0, 0.0), fill)


def translate_y(images: Tensor, pixels: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Shift each image upwards by pixels (N,). Source: PBA, `AFFINE (1, 0, 0, 0, 1, pixels)`."""
    return _transformed(images, (1.0, 0.0, 0.0, 0.0, 1.0, pixels.double()), fill)


def _transformed(images: Tensor, matrix: tuple, fill: Tensor) -> Tensor:
    """Return each image read through source = [[a, b, c], [d, e, f]] (x + 1/2, y + 1/2, 1), cut to whole pixels."""
    count, channels, height, width = images.shape
    a, b, c, d, e, f = (torch.as_tensor(v, dtype=torch.float64, device=images.device).expand(count) for v in matrix)
    x = _coordinates(a, b, c + a * 0.5 + b * 0.5, height, width).clamp_(-1, width)
    y = _coordinates(d, e, f + d * 0.5 + e * 0.5, height, width).clamp_(-1, height)
    places = y.mul_(width + 2).add_(x).add_(width + 3).long()  # in the source with its border of one pixel
    source = pad(images, (1, 1, 1, 1))
    colour = fill.view(1, channels, 1)
    source[..., 0, :] = source[..., -1, :] = colour
    source[..., 0] = source[..., -1] = colour
    places = places.view(count, 1, -1).expand(-1, channels, -1)
    return source.view(count, channels, -1).gather(2, places).view_as(images)


def _coordinates(by_x: Tensor, by_y: Tensor, start: Tensor, height: int, width: int) -> Tensor:
    """Return floor(start + x by_x + y by_y), (N, H, W) int32, in Pillow's fixed point."""
    by_x, by_y, start = (torch.floor(v * _ONE + 0.5).int()[:, None, None] for v in (by_x, by_y, start))
    columns = torch.arange(width, dtype=torch.int32, device=by_x.device)
    rows = torch.arange(height, dtype=torch.int32, device=by_x.device)[:, None]
    return (columns * by_x + (rows * by_y + start)) >> 16
