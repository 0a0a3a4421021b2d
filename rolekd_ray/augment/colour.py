"""Ops that change values and leave every pixel in its place; equal to torchvision's uint8 ops within one grey level.

Each step is exact in integers or one rounded float operation, and sums are of integers: vectorised loops, their tails
and other devices then give the same bits, whatever else is in the batch. Comparisons and `where` on bytes cost ten
times as much as byte arithmetic on a CPU (torch 2.15), hence the bit masks.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from rolekd_ray.augment.randomness import below

# Numbers as tensors: a float32 operation with a Python number spends as long again on converting the number.
_RED, _GREEN, _BLUE, _THIRTEENTH = torch.tensor([0.2989, 0.587, 0.114, 1 / 13]).unbind()
_HIGHEST_BITS = torch.tensor([256 - (1 << (8 - bits)) for bits in range(9)], dtype=torch.uint8)


def brightness(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Multiply every value by the factor (N,): 0 is black, 1 the image. Source: `adjust_brightness`."""
    return _bytes(images.float().mul_(_column(factors)))


def contrast(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move values away from the image's mean grey by the factor (N,). Source: `adjust_contrast`."""
    values = images.float()
    # Exact in any order: a row's sum of whole numbers in float32, the rows' in float64.
    mean = _grey(values).sum(3).double().mean(dim=(1, 2)).div_(images.shape[3])
    rest = mean.float() * _rest(factors).float()
    return _bytes(values.mul_(_column(factors)).add_(_column(rest)))


def color(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move values away from the pixel's grey by the factor (N,); images of one channel stay as they are.

    Source: `adjust_saturation`. Its sum is a fused multiply-add, rounded once, as here by way of float64: at 0.28 and
    0.72 many sums are whole numbers, and the last bit decides which grey level they become.
    """
    if images.shape[1] == 1:
        return images
    values = images.float()
    rest = _grey(values).double() * _column(_rest(factors)).double()
    return _bytes(values.mul_(_column(factors)).double().add_(rest).float())


def sharpness(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move inner pixels away from their blurred neighbourhood by the factor (N,). Source: `adjust_sharpness`."""
    height, width = images.shape[-2:]
    if min(images.shape) == 0 or min(height, width) <= 2:
        return images
    # Sums run along all images as one line, which is vectorised; only border pixels see another row or image.
    values = images.float().contiguous()
    line = values.view(-1)
    middle = line[width + 1 : -width - 1]
    rows = (line[:-2] + line[1:-1]).add_(line[2:])
    change = torch.zeros_like(values)
    inner = torch.add(rows[: -2 * width], rows[width:-width], out=change.view(-1)[width + 1 : -width - 1])
    inner.add_(rows[2 * width :]).add_(middle, alpha=4)  # whole numbers: exact, fused or not
    inner.mul_(_THIRTEENTH).round_().sub_(middle)  # a multiple of 1/13 is never half-way
    strength = _column(_rest(factors)) * pad(values.new_ones(height - 2, width - 2), (1, 1, 1, 1))
    return _bytes(change.mul_(strength).add_(values))


def posterize(images: Tensor, bits: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Keep the highest bits (N,), 0 to 8, of every value. Source: `posterize`."""
    masks = _HIGHEST_BITS.to(bits.device).index_select(0, bits.round().clamp_(0, 8).long())
    return images & masks.view(-1, 1, 1, 1)


def solarize(images: Tensor, thresholds: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Invert the values from the threshold (N,) up; 256 inverts none, 0 all. Source: `solarize`."""
    lowest = thresholds.ceil().clamp_(0, 256)
    under = (lowest - 1).clamp_(min=0).byte().view(-1, 1, 1, 1)
    everything = (lowest == 0).byte().view(-1, 1, 1, 1)
    reached = torch.maximum(images, under).sub_(under).clamp_(max=1).bitwise_or_(everything)
    return images ^ reached.neg_()  # -1 is a byte of ones


def equalize(images: Tensor, magnitudes: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Spread each channel's values so that all are about as frequent. Source: `equalize`, which is Pillow's."""
    count, pixels = images.shape[0] * images.shape[1], images.shape[2] * images.shape[3]
    planes = images.reshape(count, pixels)
    first = torch.arange(0, count * 256, 256, dtype=torch.int32, device=images.device).unsqueeze(1)
    places = planes.int().add_(first).view(-1)  # counting int64 takes three times as long
    histogram = torch.bincount(places, minlength=count * 256).view(count, 256)
    most = histogram.gather(1, planes.amax(1, keepdim=True).long())
    step = (pixels - most) // 255
    # In float32, for integer division is slow; exact below 2^23 pixels.
    histogram, half, divisor = histogram.float(), (step // 2).float(), step.clamp(min=1).float()
    table = histogram.cumsum(1).sub_(histogram).add_(half).div_(divisor).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, dtype=table.dtype, device=table.device))
    return table.byte().view(-1).index_select(0, places).view(images.shape)


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
    height, width = images.shape[-2:]
    half = pixels.unsqueeze(1) // 2
    rows = span(below(centres[:, :1], height), half, height).view(-1, 1, height, 1)
    columns = span(below(centres[:, 1:], width), half, width).view(-1, 1, 1, width)
    inside = (rows * columns).byte().neg_()  # -1 is a byte of ones
    return (images & ~inside).bitwise_or_(inside & fill.view(-1, 1, 1))


def span(centres: Tensor, half: Tensor | int, length: int) -> Tensor:
    """Return the rows or columns of squares around pixels, clipped at the edges.

    Args:
        centres: (N, 1) int64.
        half: half of the side, (N, 1) or one for all: that many pixels lie before the centre, as many from it on.
        length: rows or columns of the image.

    Returns:
        (N, length) float32, 1 inside.
    """
    return (torch.arange(0.5, length, device=centres.device) - centres).abs_().lt(half).float()


def _grey(values: Tensor) -> Tensor:
    """Return whole luma values (N, 1, H, W) float32 of values (N, C, H, W), ITU-R 601 as torchvision has it."""
    if values.shape[1] == 1:
        return values
    red, green, blue = values.split(1, dim=1)
    return (red * _RED).add_(green * _GREEN).add_(blue * _BLUE).floor_()


def _bytes(values: Tensor) -> Tensor:
    # By way of int16: torch's direct float to uint8 conversion is not vectorised.
    return values.clamp_(0, 255).short().byte()


def _rest(factors: Tensor) -> Tensor:
    """Return 1 - factors, in float64 as Python has it in torchvision."""
    return factors.double().neg().add_(1)


def _column(values: Tensor) -> Tensor:
    return values.float().view(-1, 1, 1, 1)
