"""The last step of every view: crop, flip, cutout, normalise."""

import torch
from torch import Tensor

from rolekd_ray.augment.colour import square
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.roles import Role


class BaseAugmentation:
    """Makes network input from uint8 views, with the fixed augmentation of the CIFAR literature.

    In this order: zero padding and random crop back to the size, horizontal flip with chance 1/2, Cutout, and
    normalisation. Padded and cut pixels are exactly 0 in the result, which is the dataset's mean.

    Args:
        crop_padding_pixels: padding on each side; 0: no crop.
        flip: draw horizontal flips.
        cutout_pixels: side of Cutout's square, clipped at the edges; 0: none.
        mean: per channel, (C,) float in [0, 1].
        std: per channel, (C,) float.

    Source: PBA `data_utils.py`. It never draws the crop's last offset (`randint`'s upper end is excluded); here all
    2 * padding + 1 are equally likely.
    """

    def __init__(self, *, crop_padding_pixels: int, flip: bool, cutout_pixels: int, mean: Tensor, std: Tensor):
        self.crop_padding_pixels, self.flip, self.cutout_pixels = crop_padding_pixels, flip, cutout_pixels
        self._mean = (mean.double() * 255).float().view(-1, 1, 1)
        self._scale = (1 / (std.double() * 255)).float().view(-1, 1, 1)

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the network's input (N, C, H, W) float32 from views (N, C, H, W) uint8; pure as an `Agent` is."""
        count, channels, height, width = images.shape
        draws = uniforms(stream_key(seed, role, epoch, "base"), indices, 5)
        pad = self.crop_padding_pixels
        down, right = ((draws[:, :2] * (2 * pad + 1)).long() - pad).unbind(1)
        rows = torch.arange(height, device=images.device) + down[:, None]
        columns = torch.arange(width, device=images.device) + right[:, None]
        kept = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :]
        if self.cutout_pixels:
            kept &= ~square(draws[:, 2:4], self.cutout_pixels, height, width)
        columns = columns.clamp(0, width - 1)
        if self.flip:
            columns = torch.where(draws[:, 4:] < 0.5, width - 1 - columns, columns)
        places = rows.clamp(0, height - 1)[:, :, None] * width + columns[:, None, :]
        places = places.view(count, 1, -1).expand(-1, channels, -1)
        cropped = images.reshape(count, channels, -1).gather(2, places).view_as(images)
        return self.normalise(cropped).mul_(kept[:, None])

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images / 255 - mean) / std as float32, shape as given; what evaluation uses."""
        if self._mean.device != images.device:
            self._mean, self._scale = self._mean.to(images.device), self._scale.to(images.device)
        return images.float().sub_(self._mean).mul_(self._scale)


def _inside(places: Tensor, length: int) -> Tensor:
    return (places >= 0) & (places < length)
