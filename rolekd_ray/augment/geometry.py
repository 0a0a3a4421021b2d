"""Ops that move pixels, equal to Pillow's nearest-neighbour transforms on every pixel.

Pillow maps each pixel of the result to one of the source by an affine map in 16.16 fixed point; so do we. An op is its
matrix, and images of different ops can be moved in one call. Magnitudes may be float64: a slope such as 0.27 then
meets Pillow's rounding exactly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

_FRACTION_BITS = 16

Matrices = Callable[[Tensor, int, int], Tensor]


def rotate(degrees: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices that turn images counter-clockwise about their centre. Source: `PIL.Image.rotate`.

    Args:
        degrees: (N,) float.
        height: rows of the images.
        width: columns of the images.

    Returns:
        (N, 6) float64: rows (a, b, c, d, e, f) of the map from result to source, as `PIL.Image.transform` takes them.
    """
    angle = degrees.double() * (-math.pi / 180)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)  # as Pillow: right angles are exact
    x, y = width / 2, height / 2
    return torch.stack([cos, sin, cos * -x + sin * -y + x, -sin, cos, sin * x + cos * -y + y], dim=1)


def shear_x(slopes: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices that move row y by slope * y pixels to the left; see `rotate`. Source: PBA."""
    return _identity_but(1, slopes)


def shear_y(slopes: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices that move column x by slope * x pixels upwards; see `rotate`. Source: PBA."""
    return _identity_but(3, slopes)


def translate_x(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices that move images to the left; see `rotate`. Source: PBA."""
    return _identity_but(2, pixels)


def translate_y(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices that move images upwards; see `rotate`. Source: PBA."""
    return _identity_but(5, pixels)


def moved(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Return images read through their matrices.

    Args:
        images: (N, C, H, W) uint8; H + W below 2^15, as coordinates are int32 of which 16 bits are fraction.
        matrices: (N, 6) float64.
        fill: colour where the source has no pixel, (C,) uint8.

    Returns:
        (N, C, H, W) uint8.
    """
    count, channels, height, width = images.shape
    a, b, c, d, e, f = matrices.unbind(1)
    x = _coordinates(a, b, c, height, width).clamp_(-1, width)
    y = _coordinates(d, e, f, height, width).clamp_(-1, height)
    places = y.mul_(width + 2).add_(x).add_(width + 3).long()  # in the source with a border of one pixel
    places = places.view(count, 1, height * width).expand(-1, channels, -1)
    return _bordered(images, fill).flatten(2).gather(2, places).view(images.shape)


def _identity_but(column: int, values: Tensor) -> Tensor:
    matrices = torch.eye(2, 3, dtype=torch.float64, device=values.device).view(1, 6).repeat(len(values), 1)
    matrices[:, column] = values
    return matrices


def _coordinates(by_x: Tensor, by_y: Tensor, start: Tensor, height: int, width: int) -> Tensor:
    """Return floor(start + (x + 1/2) by_x + (y + 1/2) by_y), (N, H, W) int32, in Pillow's fixed point."""
    start = start + by_x * 0.5 + by_y * 0.5
    steps = torch.stack([by_x, by_y, start]).mul_(1 << _FRACTION_BITS).add_(0.5).floor_().int()
    by_x, by_y, start = steps[..., None, None].unbind(0)
    columns = torch.arange(width, dtype=torch.int32, device=start.device)
    rows = torch.arange(height, dtype=torch.int32, device=start.device)[:, None]
    return (columns * by_x + (rows * by_y).add_(start)).bitwise_right_shift_(_FRACTION_BITS)


def _bordered(images: Tensor, fill: Tensor) -> Tensor:
    bordered = pad(images, (1, 1, 1, 1))
    colour = fill[:, None]
    bordered[:, :, 0], bordered[:, :, -1] = colour, colour
    bordered[..., 0], bordered[..., -1] = colour, colour
    return bordered
