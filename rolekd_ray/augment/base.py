"""The last step of every view: crop, flip, cutout, normalise."""

import torch
from torch import Tensor

from rolekd_ray.augment.colour import span
from rolekd_ray.augment.geometry import row_runs
from rolekd_ray.augment.randomness import below, stream_key, uniforms
from rolekd_ray.roles import Role

_CHUNK_VALUES = 1 << 17  # worked on at a time, so that they stay in a core's cache: half a megabyte


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
        if not len(images):
            return self.normalise(images)
        result = torch.empty(images.shape, device=images.device)  # outside of inference mode: autograd saves it
        with torch.inference_mode():
            draws = uniforms(stream_key(seed, role, epoch, "base"), indices, 5)
            offsets = below(draws[:, :2], 2 * self.crop_padding_pixels + 1) - self.crop_padding_pixels
            cropped = self._cropped(images, offsets, draws[:, 2] < 0.5)
            kept = self._kept(offsets, draws[:, 3:], *images.shape[-2:])
            chunk = max(1, _CHUNK_VALUES // images[0].numel())
            for part, view, mask in zip(result.split(chunk), cropped.split(chunk), kept.split(chunk)):
                self._normalise_(part.copy_(view)).mul_(mask)
        return result

    def _kept(self, offsets: Tensor, centres: Tensor, height: int, width: int) -> Tensor:
        """Return 1 where the result shows the image, 0 where padding or Cutout; (N, 1, H, W) float32."""
        # Tables over all offsets and all centres: there are fewer than images.
        reach, device = self.crop_padding_pixels, offsets.device
        every = torch.arange(-reach, reach + 1, device=device).unsqueeze(1)
        rows = _inside(every, height).index_select(0, offsets[:, 0] + reach)
        columns = _inside(every, width).index_select(0, offsets[:, 1] + reach)
        if not self.cutout_pixels:
            return rows.view(-1, 1, height, 1) * columns.view(-1, 1, 1, width)
        cut_rows, cut_columns = (
            span(torch.arange(size, device=device).unsqueeze(1), self.cutout_pixels // 2, size).index_select(0, at)
            for size, at in ((height, below(centres[:, 0], height)), (width, below(centres[:, 1], width)))
        )
        # A row is empty, whole or cut: copying one of three is cheaper than logic on all pixels.
        kinds = torch.stack([torch.zeros_like(columns), columns, columns * (1 - cut_columns)], dim=1)
        kind = rows.mul_(cut_rows + 1).long() + torch.arange(0, 3 * len(rows), 3, device=rows.device)[:, None]
        return kinds.view(-1, width).index_select(0, kind.view(-1)).view(-1, 1, height, width)

    def _cropped(self, images: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """Return images, some mirrored, moved by their offsets; what comes in from outside them is arbitrary."""
        count, height = len(images), images.shape[-2]
        sources, each = [images], torch.arange(count, device=images.device)
        if self.flip:
            sources.append(images.index_select(0, mirrored.nonzero()[:, 0]).flip(-1))
            each = torch.where(mirrored, mirrored.cumsum(0) + (count - 1), each)
        rows = (torch.arange(height, device=images.device) + offsets[:, :1]).clamp_(0, height - 1)
        return row_runs(sources, each, rows, offsets[:, 1:], self.crop_padding_pixels)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images / 255 - mean) / std as float32, shape as given; what evaluation uses."""
        return self._normalise_(images.float())

    def _normalise_(self, values: Tensor) -> Tensor:
        if self._mean.device != values.device:
            self._mean, self._scale = self._mean.to(values.device), self._scale.to(values.device)
        return values.sub_(self._mean).mul_(self._scale)


def _inside(offsets: Tensor, length: int) -> Tensor:
    """Return (N, L) float32: 1 where place + offset lies in 0 … length - 1."""
    places = torch.arange(length, device=offsets.device) + offsets
    return (places == places.clamp(0, length - 1)).float()
