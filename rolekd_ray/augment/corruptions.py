"""Corruptions: how a clean image gets worse, in five severities; for measuring robustness, never for training.

The idea is Hendrycks & Dietterich's (arXiv 1903.12261); the strengths are ours, not those of CIFAR-10-C, and so are the
directions: what can go two ways, such as a rotation, goes either way by chance. Sizes in pixels grow with the image.
"""

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from rolekd_ray.augment.ops import OPS
from rolekd_ray.augment.randomness import stream_key, uniforms

SEVERITIES = 5
STRENGTHS: dict[str, tuple[float, float, float, float, float]] = {
    "noise": (0.04, 0.08, 0.12, 0.16, 0.2),  # standard deviation, as a share of white
    "blur": (0.01, 0.025, 0.04, 0.055, 0.07),  # Gaussian's standard deviation, as a share of the shorter side
    "contrast": (0.6, 0.45, 0.3, 0.2, 0.1),  # factor of the distance from the image's mean grey
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to all values, as a share of white
    "jpeg": (50, 30, 20, 12, 7),  # quality, of 100
    "shift": (0.05, 0.1, 0.15, 0.2, 0.25),  # left, right, up or down, as a share of the side; at least a pixel
    "rotation": (10, 20, 30, 40, 50),  # degrees, to either side
}
_SHARP_PIXELS = 0.3  # a Gaussian as narrow changes nothing, so blur begins there


def corrupt(images: Tensor, name: str, severity: int, *, seed: int, fill: Tensor) -> Tensor:
    """Return images made worse; the same ones on every call, and an image's result depends on its place and itself.

    Args:
        images: (N, C, H, W) uint8, C 1 or 3; not written to.
        name: one of `STRENGTHS`.
        severity: 1, mild, to 5.
        seed: of noise and directions; all severities of an image use the same, so one is the other's scaled.
        fill: colour that comes in where an image was moved away, (C,) uint8.

    Returns:
        (N, C, H, W) uint8.
    """
    assert name in STRENGTHS and 1 <= severity <= SEVERITIES, (name, severity)
    strength = STRENGTHS[name][severity - 1]
    if name == "noise":
        return _noise(images, strength, stream_key(seed, name))
    if name == "blur":
        return _blurred(images, strength * min(images.shape[-2:]) + _SHARP_PIXELS)
    if name == "brightness":
        return _bytes(images.float() + 255 * strength)
    if name == "jpeg":
        return _jpeg(images, int(strength))
    draws = uniforms(stream_key(seed, name), torch.arange(len(images), device=images.device), 2)
    signs = torch.where(draws[:, 0] < 0.5, -1.0, 1.0)
    if name == "contrast":
        return _op("contrast", images, torch.full_like(signs, strength), fill)
    if name == "rotation":
        return _op("rotate", images, signs * strength, fill)
    height, width = images.shape[-2:]
    sideways = draws[:, 1] < 0.5
    across = _op("translate_x", images, signs * max(1, round(strength * width)), fill)
    along = _op("translate_y", images, signs * max(1, round(strength * height)), fill)
    return torch.where(sideways.view(-1, 1, 1, 1), across, along)


def _op(name: str, images: Tensor, magnitudes: Tensor, fill: Tensor) -> Tensor:
    return OPS[name](images, magnitudes, images.new_zeros(len(images), 2, dtype=torch.float32), fill)


def _noise(images: Tensor, deviation: float, key: int) -> Tensor:
    """Add Gaussian noise, by the inverse of its distribution function: one draw a value."""
    draws = uniforms(key, torch.arange(len(images), device=images.device), math.prod(images.shape[1:]))
    normal = math.sqrt(2) * torch.erfinv(2 * (draws + 2.0**-25) - 1)  # draws begin at 0, which would be minus infinity
    return _bytes(images.float() + 255 * deviation * normal.view(images.shape))


def _blurred(images: Tensor, deviation: float) -> Tensor:
    reach = min(math.ceil(3 * deviation), min(images.shape[-2:]) - 1)  # a border is mirrored once
    return gaussian_blur(images, [2 * reach + 1, 2 * reach + 1], [deviation, deviation])


def _jpeg(images: Tensor, quality: int) -> Tensor:
    """Write and read each image as JPEG, by Pillow."""
    pictures = images.permute(0, 2, 3, 1).cpu().numpy()
    result = np.empty_like(pictures)
    for place, picture in enumerate(pictures):
        file = io.BytesIO()
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, "JPEG", quality=quality)
        with Image.open(file) as opened:
            result[place] = np.asarray(opened).reshape(picture.shape)
    return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous().to(images.device)


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).byte()
