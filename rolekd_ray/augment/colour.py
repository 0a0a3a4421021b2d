"""Ops that change values and leave every pixel in its place; equal to torchvision's uint8 ops within one grey level.

Each step is exact in integers or one rounded float operation, and sums are of integers: vectorised loops, their tails
and other devices then give the same bits, whatever else is in the batch. Comparisons and `where` on bytes cost ten
times as much as byte arithmetic on a CPU (torch 2.15), hence the bit masks.
"""

import torch
from torch import Tensor


def brightness(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Multiply every value by the factor (N,): 0 is black, 1 the image. Source: `adjust_brightness`."""
    return _bytes(images.float().mul_(_column(factors)))


def contrast(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move values away from the image's mean grey by the factor (N,). Source: `adjust_contrast`."""
    grey = _grey(images).flatten(1).sum(dim=1, dtype=torch.int64)
    mean = grey.double().div_(images.shape[-2] * images.shape[-1]).float()
    return _blended(images, _column(mean), factors)


def color(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move values away from the pixel's grey by the factor (N,); images of one channel stay as they are.

    Source: `adjust_saturation`.
    """
    return images if images.shape[1] == 1 else _blended(images, _grey(images), factors)


def sharpness(images: Tensor, factors: Tensor, centres: Tensor, fill: Tensor) -> Tensor:
    """Move inner pixels away from their blurred neighbourhood by the factor (N,). Source: `adjust_sharpness`."""
    if min(images.shape[-2:]) <= 2:
        return images
    wide = images.to(torch.int16)
    inner = wide[..., 1:-1, 1:-1]
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + inner * 4
    blurred = total.float().mul_(1 / 13).round_()  # a multiple of 1/13 is never half-way
    sharp = images.clone()
    sharp[..., 1:-1, 1:-1] = _bytes(blurred.sub_(inner).mul_(_column(1 - factors.double())).add_(inner))
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
    planes = images.flatten(0, 1).flatten(1).long()
    count, pixels = planes.shape
    places = planes + torch.arange(0, count * 256, 256, device=images.device)[:, None]
    histogram = torch.bincount(places.view(-1), minlength=count * 256).view(count, 256)
    cumulated = histogram.cumsum(1)
    highest = histogram.gather(1, planes.amax(1, keepdim=True))
    step = (pixels - highest) // 255
    table = (cumulated - histogram + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.to(torch.uint8).view(-1).index_select(0, places.view(-1)).view_as(images)


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
    inside = square(centres, pixels, images.shape[-2], images.shape[-1]).to(torch.uint8).neg_()[:, None]
    return (images & ~inside).bitwise_or_(inside & fill.view(1, -1, 1, 1))


def square(centres: Tensor, side_pixels: Tensor | int, height: int, width: int) -> Tensor:
    """Return the pixels of a square around a random pixel, clipped at the edges.

    Args:
        centres: uniforms for row and column, (N, 2) float32 in [0, 1).
        side_pixels: side, (N,) or one for all; side // 2 pixels lie above and left of the centre, as many from it on.
        height: rows of the image.
        width: columns of the image.

    Returns:
        (N, H, W) bool.
    """
    half = torch.as_tensor(side_pixels, device=centres.device).long()[..., None] // 2
    return _span(centres[:, 0], half, height)[:, :, None] & _span(centres[:, 1], half, width)[:, None, :]


def _span(centres: Tensor, half: Tensor, length: int) -> Tensor:
    away = torch.arange(length, device=centres.device) - (centres * length).long()[:, None]
    return (away >= -half) & (away < half)


def _grey(images: Tensor) -> Tensor:
    """Return whole luma values (N, 1, H, W) float32, ITU-R 601 as torchvision has it."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, dim=1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114).floor_()


def _blended(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return _bytes(images.float().mul_(_column(factors)).add_(other * _column(1 - factors.double())))


def _bytes(values: Tensor) -> Tensor:
    # By way of int16: torch's direct float to uint8 conversion is not vectorised.
    return values.clamp_(0, 255).to(torch.int16).to(torch.uint8)


def _column(values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return values.to(dtype)[:, None, None, None]
