"""Ops that move pixels, equal to Pillow's nearest-neighbour transforms on every pixel.

Pillow maps each pixel of the result to one of the source by an affine map in 16.16 fixed point; so do we. Magnitudes
may be float64: a slope such as 0.27 then meets Pillow's rounding exactly.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

TURNS = ("rotate", "shear_y")
SHIFTS = ("translate_x", "translate_y", "shear_x")  # rows stay rows
_FRACTION_BITS = 16


def turned(images: Tensor, magnitudes: Tensor, fill: Tensor) -> Tensor:
    """Rotate or shear images: each by degrees counter-clockwise about its centre, or column x up by slope * x.

    Args:
        images: (N, C, H, W) uint8; H + W below 2^15, as coordinates are int32 of which 16 bits are fraction.
        magnitudes: a column per op of `TURNS`, one of the two 0; (N, 2).
        fill: colour where the source has no pixel, (C,) uint8.

    Returns:
        (N, C, H, W) uint8.

    Source: `PIL.Image.rotate`; PBA, `AFFINE (1, 0, 0, slope, 1, 0)`.
    """
    count, channels, height, width = images.shape
    degrees, slope = magnitudes.double().unbind(1)
    angle = degrees * (-math.pi / 180)
    cos, sin = angle.cos().round(decimals=15), angle.sin().round(decimals=15)  # as Pillow: right angles are exact
    x, y = width / 2, height / 2
    columns = _coordinates(cos, sin, cos * -x + sin * -y + x, height, width).clamp_(-1, width)
    rows = _coordinates(slope - sin, cos, sin * x + cos * -y + y, height, width).clamp_(-1, height)
    places = rows.mul_(width + 2).add_(columns).add_(width + 3).long()  # in the source with a border of one pixel
    places = places.view(count, 1, height * width).expand(-1, channels, -1)
    return _bordered(images, fill).flatten(2).gather(2, places).view(images.shape)


def shifted(images: Tensor, magnitudes: Tensor, fill: Tensor) -> Tensor:
    """Shift images by pixels to the left, by pixels up, or row y by slope * y to the left; see `turned`.

    Args:
        images: (N, C, H, W) uint8.
        magnitudes: a column per op of `SHIFTS`, all but one of a row 0; (N, 3).
        fill: (C,) uint8.

    Returns:
        (N, C, H, W) uint8.

    Source: PBA, `AFFINE (1, slope, pixels, 0, 1, pixels)`.
    """
    height, width = images.shape[-2:]
    left, up, slope = magnitudes.double()[:, :, None].unbind(1)
    y = torch.arange(height, device=images.device)
    rows = y + (_fixed(up + 0.5) >> _FRACTION_BITS)
    shifts = (_fixed(slope) * y + _fixed(left + 0.5 + slope * 0.5)) >> _FRACTION_BITS
    inside = rows.clamp(0, height - 1)
    shifts = torch.where(rows == inside, shifts.clamp_(-width, width), width)
    # A row's mask is a window on a row of ones between two empty ones.
    line = pad(images.new_full((width,), 255), (width, width))
    kept = _windows(line, width).index_select(0, (shifts + width).view(-1)).view(-1, 1, height, width)
    each = torch.arange(len(images), device=images.device)
    return row_runs(images, each, inside, shifts, width).bitwise_and_(kept).bitwise_or_(fill.view(-1, 1, 1) & ~kept)


def row_runs(images: Tensor, chosen: Tensor, rows: Tensor, shifts: Tensor, guard: int) -> Tensor:
    """Return images put together from rows of others, each read from some pixels further on.

    A row of the result is a run of bytes of the source: copying runs is several times cheaper than gathering pixels.

    Args:
        images: (M, C, H, W) uint8.
        chosen: which image each result is made from, (N,) int64.
        rows: which of its rows, 0 … H - 1, (N, H) int64.
        shifts: pixels to the right of the row's start at which to begin, (N, H) or (N, 1) int64.
        guard: largest shift to either side.

    Returns:
        (N, C, H, W) uint8; where a shift leaves the row, arbitrary values.
    """
    channels, height, width = images.shape[1:]
    ends = images.new_zeros(guard)
    source = torch.cat([ends, images.reshape(-1), ends])
    planes = (chosen[:, None] * channels + torch.arange(channels, device=images.device)) * (height * width)
    starts = planes[:, :, None] + (rows * width + (shifts + guard))[:, None]
    return _windows(source, width).index_select(0, starts.view(-1)).view(-1, channels, height, width)


def _windows(line: Tensor, width: int) -> Tensor:
    """Return all runs of `width` elements of a line, as a view."""
    return line.as_strided((len(line) - width + 1, width), (1, 1))


def _fixed(values: Tensor) -> Tensor:
    return (values * (1 << _FRACTION_BITS) + 0.5).floor_().long()


def _coordinates(by_x: Tensor, by_y: Tensor, start: Tensor, height: int, width: int) -> Tensor:
    """Return floor(start + (x + 1/2) by_x + (y + 1/2) by_y), (N, H, W) int32, in Pillow's fixed point."""
    steps = _fixed(torch.stack([by_x, by_y, start + by_x * 0.5 + by_y * 0.5])).int()
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
