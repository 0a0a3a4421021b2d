"""The last step of every view: crop, flip, cutout, normalise."""

import torch
from torch import Tensor

from rolekd_ray.augment.colour import square
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.roles import Role

_CHUNK = 64
_Rectangles = tuple[Tensor, Tensor]  # one per image: its rows (N, H) and columns (N, W), float32, 1 inside


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
        draws = uniforms(stream_key(seed, role, epoch, "base"), indices, 5)
        offsets = (draws[:, :2] * (2 * self.crop_padding_pixels + 1)).long() - self.crop_padding_pixels
        mirrored = (draws[:, 2] < 0.5) & self.flip
        cropped = self._cropped(images, offsets, mirrored)
        shown, cut = self._shown(offsets, draws[:, 3:], *images.shape[-2:])
        result = torch.empty(images.shape, device=images.device)
        for part in range(0, len(images), _CHUNK):  # what is worked on at a time fits a core's cache
            at = slice(part, part + _CHUNK)
            kept = _product(*shown, at).sub_(_product(*cut, at))
            self._normalise_(result[at].copy_(cropped[at])).mul_(kept[:, None])
        return result

    def _shown(self, offsets: Tensor, centres: Tensor, height: int, width: int) -> tuple[_Rectangles, _Rectangles]:
        """Return where the result shows the image rather than padding, and the part of it that Cutout hides."""
        rows, columns = _inside(offsets[:, 0], height), _inside(offsets[:, 1], width)
        cut_rows, cut_columns = square(centres, self.cutout_pixels, height, width)
        return (rows.float(), columns.float()), ((cut_rows & rows).float(), (cut_columns & columns).float())

    def _cropped(self, images: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
        """Return images, some mirrored, moved by their offsets; what comes in from outside them is arbitrary.

        A row of the result is a run of bytes of the source, so the crop copies rows instead of gathering pixels.
        """
        count, channels, height, width = images.shape
        guard = self.crop_padding_pixels
        edge = images.new_zeros(guard)
        flipped = images.index_select(0, mirrored.nonzero()[:, 0]).flip(-1)
        source = torch.cat([edge, images.reshape(-1), flipped.view(-1), edge])
        image = torch.where(mirrored, mirrored.cumsum(0) + (count - 1), torch.arange(count, device=images.device))
        row = (torch.arange(height, device=images.device) + offsets[:, :1]).clamp_(0, height - 1)
        plane = image[:, None] * channels + torch.arange(channels, device=images.device)
        start = (plane[:, :, None] * height + row[:, None]) * width + (offsets[:, 1] + guard)[:, None, None]
        runs = source.as_strided((len(source) - width + 1, width), (1, 1))
        return runs.index_select(0, start.view(-1)).view(images.shape)

    def normalise(self, images: Tensor) -> Tensor:
        """Return (images / 255 - mean) / std as float32, shape as given; what evaluation uses."""
        return self._normalise_(images.float())

    def _normalise_(self, values: Tensor) -> Tensor:
        if self._mean.device != values.device:
            self._mean, self._scale = self._mean.to(values.device), self._scale.to(values.device)
        return values.sub_(self._mean).mul_(self._scale)


def _product(rows: Tensor, columns: Tensor, at: slice) -> Tensor:
    # Products of floats: a CPU does these ten times as fast as logic on (N, H, W) bools.
    return rows[at, :, None] * columns[at, None]


def _inside(offsets: Tensor, length: int) -> Tensor:
    places = torch.arange(length, device=offsets.device) + offsets[:, None]
    return (places >= 0) & (places < length)
