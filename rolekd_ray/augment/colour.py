"""Ops that change values and leave every pixel in its place; equal to torchvision's uint8 ops within one grey level.

Each step is exact in integers or one rounded float operation, and sums are of integers: vectorised loops, their tails
and other devices then give the same bits, whatever else is in the batch. Comparisons and `where` on bytes cost ten
times as much as byte arithmetic on a CPU (torch 2.15), hence the bit masks.
"""

import torch
from torch import Tensor

_TURNS = 4


def brightness(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Multiply every value by the factor (N,): 0 is black, 1 the image. Source: `adjust_brightness`."""
    return _bytes(images.float().mul_(_column(factors)))


def contrast(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move values away from the image's mean grey by the factor (N,). Source: `adjust_contrast`."""
    values = images.float()
    mean = _grey(values).double().mean(dim=(1, 2, 3))  # exact in float64, in any order
    rest = mean.float() * (1 - factors.double()).float()
    return _bytes(values.mul_(_column(factors)).add_(_column(rest)))


def color(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move values away from the pixel's grey by the factor (N,); images of one channel stay as they are.

    Source: `adjust_saturation`. Its sum is a fused multiply-add, rounded once, as here by way of float64: at 0.28 and
    0.72 many sums are whole numbers, and the last bit decides which grey level they become.
    """
    if images.shape[1] == 1:
        return images
    values = images.float()
    rest = _grey(values).double() * _column(1 - factors.double()).double()
    return _bytes(values.mul_(_column(factors)).double().add_(rest).float())


def sharpness(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move inner pixels away from their blurred neighbourhood by the factor (N,). Source: `adjust_sharpness`."""
    width = images.shape[-1]
    if min(images.shape) == 0 or min(images.shape[-2:]) <= 2:
        return images
    # Sums run along all images as one line, which is vectorised; only border pixels see another row or image.
    values = images.float()
    line = values.view(-1)
    rows = (line[:-2] + line[1:-1]).add_(line[2:])
    change = torch.zeros_like(values)
    inner, middle = change.view(-1)[width + 1 : -width - 1], line[width + 1 : -width - 1]
    torch.add(rows[: -2 * width], rows[width:-width], out=inner)
    inner.add_(rows[2 * width :]).add_(middle * 4)
    inner.mul_(1 / 13).round_().sub_(middle)  # a multiple of 1/13 is never half-way
    sharp = _bytes(change.mul_(_column(1 - factors.double())).add_(values))
    for border in ((..., 0, slice(None)), (..., -1, slice(None)), (..., 0), (..., -1)):
        sharp[border] = images[border]
    return sharp


def posterize(images: Tensor, bits: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Keep the highest bits (N,), 0 to 8, of every value. Source: `posterize`."""
    dropped = 8 - bits.round().clamp(0, 8).to(torch.int32)
    return images & _column((256 - (1 << dropped)).to(torch.uint8), torch.uint8)


def solarize(images: Tensor, thresholds: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Invert the values from the threshold (N,) up; 256 inverts none, 0 all. Source: `solarize`."""
    lowest = thresholds.ceil().clamp(0, 256)
    below = _column((lowest - 1).clamp_(min=0).to(torch.uint8), torch.uint8)
    everything = _column((lowest == 0).to(torch.uint8), torch.uint8)
    reached = torch.maximum(images, below).sub_(below).clamp_(max=1).bitwise_or_(everything)
    return images ^ reached.neg_()  # -1 is a byte of ones


def equalize(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Spread each channel's values so that all are about as frequent. Source: `equalize`, which is Pillow's."""
    planes = images.flatten(0, 1).flatten(1)
    count, pixels = planes.shape
    # Neighbours are often equal, and one counter's additions wait for each other: four counters take turns.
    lines = torch.arange(0, count * _TURNS * 256, _TURNS * 256, dtype=torch.int32, device=images.device)[:, None]
    turns = torch.arange(pixels, dtype=torch.int32, device=images.device).remainder_(_TURNS).mul_(256)
    places = planes.int().add_(lines).add_(turns).long().view(-1)
    histogram = torch.zeros(count * _TURNS * 256, dtype=torch.int32, device=images.device)
    histogram.scatter_add_(0, places, torch.ones(1, dtype=torch.int32, device=images.device).expand(len(places)))
    table = _equalizing(histogram.view(count, _TURNS, 256).sum(1, dtype=torch.int32), planes.amax(1))
    return table[:, None].expand(-1, _TURNS, -1).reshape(-1).gather(0, places).view(images.shape)


def _equalizing(histogram: Tensor, highest: Tensor) -> Tensor:
    """Return what each value becomes, (P, 256) uint8, from histograms (P, 256) int32 and highest values (P,) uint8."""
    pixels = histogram.sum(1, keepdim=True, dtype=torch.int32)
    step = (pixels - histogram.gather(1, highest.long()[:, None])) // 255
    below = histogram.cumsum(1, dtype=torch.int32).sub_(histogram)
    # In float32, for integer division is slow; exact below 2^23 pixels.
    table = (below + step // 2).float().div_(step.clamp(min=1)).floor_().clamp_(max=255)
    spread = (step > 0).float()
    unchanged = torch.arange(256, dtype=torch.float32, device=step.device)
    return table.mul_(spread).add_(unchanged * (1 - spread)).to(torch.uint8)


def auto_contrast(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Stretch each channel to the range 0 to 255; a flat channel stays. Source: `autocontrast`."""
    planes = images.flatten(2)
    low, high = planes.amin(2).float(), planes.amax(2).float()
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1 / 255))[..., None, None]
    return _bytes(images.float().sub_(torch.where(flat, 0.0, low)[..., None, None]).div_(scale))


def invert(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Turn every value v into 255 - v. Source: `invert`."""
    return ~images


def cutout(images: Tensor, pixels: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Paint a square of side pixels (N,) at a random pixel, clipped at the edges. Source: PBA, `_cutout_pil_impl`.

    As there, an odd side loses one pixel.
    """
    rows, columns = square(centres, pixels, images.shape[-2], images.shape[-1])
    inside = (rows.to(torch.uint8).neg_()[:, :, None] & columns.to(torch.uint8).neg_()[:, None, :])[:, None]
    return (images & ~inside).bitwise_or_(inside & fill.view(1, -1, 1, 1))


def square(centres: Tensor, side_pixels: Tensor | int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of a square around a random pixel, clipped at the edges.

    Args:
        centres: uniforms for row and column, (N, 2) float32 in [0, 1).
        side_pixels: side, (N,) or one for all; side // 2 pixels lie above and left of the centre, as many from it on.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (N, H) and (N, W) bool; the square is where both hold.
    """
    half = torch.as_tensor(side_pixels, device=centres.device).long()[..., None] // 2
    return _span(centres[:, 0], half, height), _span(centres[:, 1], half, width)


def _span(centres: Tensor, half: Tensor, length: int) -> Tensor:
    away = torch.arange(length, device=centres.device) - (centres * length).long()[:, None]
    return (away >= -half) & (away < half)


def _grey(values: Tensor) -> Tensor:
    """Return whole luma values (N, 1, H, W) float32 of values (N, C, H, W), ITU-R 601 as torchvision has it."""
    if values.shape[1] == 1:
        return values
    red, green, blue = values.split(1, dim=1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).floor_()


def _bytes(values: Tensor) -> Tensor:
    # By way of int16: torch's direct float to uint8 conversion is not vectorised.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _column(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return values.to(dtype)[:, None, None, None]
