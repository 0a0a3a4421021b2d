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


def steps(magnitudes: Tensor, height: int, width: int) -> Tensor:
    """Return how the place in the source moves with the place in the result.

    `rotate` turns images counter-clockwise about their centre, by degrees; `translate_x` and `translate_y` move them to
    the left and up, by pixels; `shear_x` moves row y to the left by slope * y, `shear_y` column x up by slope * x.

    Args:
        magnitudes: a column per op of `TURNS` and `SHIFTS`, all but one of a row 0; (N, 5).
        height: rows of the images.
        width: columns of the images.

    Returns:
        Column and row (2nd axis) of the source: change with x, change with y, value at x = y = 0; (3, 2, N) int32, of
        which 16 bits are fraction. A sum of such numbers, rounded down, is the pixel.

    Source: `PIL.Image.rotate`; PBA, `AFFINE (1, slope, pixels, slope, 1, pixels)`.
    """
    degrees, slope_y, left, up, slope_x = magnitudes.double().t()
    angle = degrees * (-math.pi / 180)
    cos, sin = torch.stack([angle.cos(), angle.sin()]).round(decimals=15)  # as Pillow: right angles are exact
    x, y = 0.5 - width / 2, 0.5 - height / 2  # the centre of pixel (0, 0), from the image's centre
    column = (cos * x).add_(sin, alpha=y).add_(width / 2).add_(slope_x, alpha=0.5).add_(left)
    row = (cos * y).sub_(sin, alpha=x).add_(height / 2).add_(slope_y, alpha=0.5).add_(up)
    floats = torch.stack([cos, slope_y - sin, sin + slope_x, cos, column, row])
    return floats.mul_(1 << _FRACTION_BITS).add_(0.5).floor_().int().view(3, 2, len(magnitudes))


def turned(images: Tensor, steps: Tensor, fill: Tensor) -> Tensor:
    """Return images rotated or sheared, by any of `steps`.

    Args:
        images: (N, C, H, W) uint8; H + W below 2^15.
        steps: (3, 2, N) int32.
        fill: colour where the source has no pixel, (C,) uint8.

    Returns:
        (N, C, H, W) uint8.
    """
    count, channels, height, width = images.shape
    by_x, by_y, start = steps.view(3, 2, count, 1, 1)
    x = torch.arange(width, dtype=torch.int32, device=images.device)
    y = torch.arange(height, dtype=torch.int32, device=images.device).unsqueeze(1)
    start = start + (1 << _FRACTION_BITS)  # the source gets a border of one pixel
    places = (x * by_x + (y * by_y).add_(start)).bitwise_right_shift_(_FRACTION_BITS)
    columns, rows = places[0].clamp_(0, width + 1), places[1].clamp_(0, height + 1)
    places = columns.add_(rows, alpha=width + 2).long().view(count, 1, height * width).expand(-1, channels, -1)
    return _bordered(images, fill).flatten(2).gather(2, places).view(images.shape)


def shifted(images: Tensor, steps: Tensor, fill: Tensor) -> Tensor:
    """Return images translated, or sheared along their rows, by steps of `SHIFTS`; as `turned`, and twice as fast."""
    height, width = images.shape[-2:]
    slope, left, up = steps[1, 0].unsqueeze(1), steps[2, 0].unsqueeze(1), steps[2, 1].unsqueeze(1)
    y = torch.arange(height, dtype=torch.int32, device=images.device)
    rows = (up >> _FRACTION_BITS) + y
    inside = rows.clamp(0, height - 1)
    shifts = (slope * y).add_(left).bitwise_right_shift_(_FRACTION_BITS).clamp_(-width, width)
    shifts = torch.where(rows == inside, shifts, width).long()
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
        rows: which of its rows, 0 … H - 1, (N, H) int32 or int64.
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


def _bordered(images: Tensor, fill: Tensor) -> Tensor:
    """Return images with a border of one pixel."""
    count, channels, height, width = images.shape
    bordered = fill.view(-1, 1, 1).expand(count, channels, height + 2, width + 2).contiguous()
    bordered[:, :, 1:-1, 1:-1] = images
    return bordered
