"""Ops that move pixels, equal to Pillow's nearest-neighbour transforms on every pixel.

Pillow maps each pixel of the result to one of the source by an affine map in 16.16 fixed point; so do we. Magnitudes
may be float64: a slope such as 0.27 then meets Pillow's rounding exactly.
"""

import math
from collections.abc import Sequence

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
    cos, sin = torch.stack([angle.cos(), angle.sin()]).round(decimals=15)  # as Pillow: right angles are exact
    x, y = width / 2, height / 2
    # Of the centre of pixel (0, 0), and one further: the source has a border of one pixel.
    start_x = (cos * (0.5 - x)).add_(sin, alpha=0.5 - y).add_(x + 1)
    start_y = (cos * (0.5 - y)).sub_(sin, alpha=0.5 - x).add_(slope, alpha=0.5).add_(y + 1)
    steps = torch.stack([cos, slope - sin, sin, cos, start_x, start_y]).view(3, 2, count)
    places = _coordinates(steps, height, width)
    columns, rows = places[0].clamp_(0, width + 1), places[1].clamp_(0, height + 1)
    places = columns.add_(rows, alpha=width + 2).long().view(count, 1, height * width).expand(-1, channels, -1)
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
    left, up, slope = magnitudes.double().unbind(1)
    steps = torch.stack([slope, torch.add(left, slope, alpha=0.5).add_(0.5), up + 0.5])
    slope, left, up = _fixed(steps).long().unsqueeze(2).unbind()
    y = torch.arange(height, device=images.device)
    rows = (up >> _FRACTION_BITS) + y
    inside = rows.clamp(0, height - 1)
    shifts = (slope * y).add_(left).bitwise_right_shift_(_FRACTION_BITS).clamp_(-width, width)
    shifts = torch.where(rows == inside, shifts, width)
    # A row's mask is a window on a row of ones between two empty ones.
    line = pad(images.new_full((width,), 255), (width, width))
    kept = _windows(line, width).index_select(0, (shifts + width).view(-1)).view(-1, 1, height, width)
    each = torch.arange(len(images), device=images.device)
    moved = row_runs([images], each, inside, shifts, width)
    return moved.bitwise_and_(kept).bitwise_or_(fill.view(-1, 1, 1) & kept.bitwise_not_())


def row_runs(sources: Sequence[Tensor], chosen: Tensor, rows: Tensor, shifts: Tensor, guard: int) -> Tensor:
    """Return images put together from rows of others, each read from some pixels further on.

    A row of the result is a run of bytes of the source: copying runs is several times cheaper than gathering pixels.

    Args:
        sources: (M, C, H, W) uint8 each, counted on from one to the next.
        chosen: which image each result is made from, (N,) int64.
        rows: which of its rows, 0 … H - 1, (N, H) int64.
        shifts: pixels to the right of the row's start at which to begin, (N, H) or (N, 1) int64.
        guard: largest shift to either side.

    Returns:
        (N, C, H, W) uint8; where a shift leaves the row, arbitrary values.
    """
    channels, height, width = sources[0].shape[1:]
    ends = sources[0].new_zeros(guard)
    source = torch.cat([ends, *(images.reshape(-1) for images in sources), ends])
    planes = (chosen * channels).unsqueeze(1) + torch.arange(channels, device=chosen.device)
    starts = (planes * (height * width)).unsqueeze(2) + (rows * width).add_(shifts + guard).unsqueeze(1)
    return _windows(source, width).index_select(0, starts.view(-1)).view(-1, channels, height, width)


def _windows(line: Tensor, width: int) -> Tensor:
    """Return all runs of `width` elements of a line, as a view."""
    return line.as_strided((len(line) - width + 1, width), (1, 1))


def _fixed(values: Tensor) -> Tensor:
    return values.mul_(1 << _FRACTION_BITS).add_(0.5).floor_()


def _coordinates(steps: Tensor, height: int, width: int) -> Tensor:
    """Return floor(start + x by_x + y by_y), (2, N, H, W) int32, in Pillow's fixed point.

    `steps` holds by_x, by_y and start (3, 2, N) float64 and is overwritten.
    """
    by_x, by_y, start = _fixed(steps).int().view(*steps.shape, 1, 1).unbind()
    columns = torch.arange(width, dtype=torch.int32, device=steps.device)
    rows = torch.arange(height, dtype=torch.int32, device=steps.device).unsqueeze(1)
    return (columns * by_x + (rows * by_y).add_(start)).bitwise_right_shift_(_FRACTION_BITS)


def _bordered(images: Tensor, fill: Tensor) -> Tensor:
    """Return images with a border of one pixel."""
    count, channels, height, width = images.shape
    bordered = fill.view(-1, 1, 1).expand(count, channels, height + 2, width + 2).contiguous()
    bordered[:, :, 1:-1, 1:-1] = images
    return bordered
