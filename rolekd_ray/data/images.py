"""An image set: decoded images with labels and the names of the classes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size with their labels.

    Attributes:
        name: source and split, for messages.
        images: (N, C, H, W) uint8, C 1 (grey) or 3 (RGB). **Read only**: it may be memory shared with other
            processes; writing to it makes a private copy of each page touched.
        labels: (N,) int64 in 0..num_classes-1.
        class_names: one name per label.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """How many classes there are; one may have no image in this set."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return the images at `indices` (M,) int64, in that order.

        The result is a private copy of M images; to train on most of a large set, index `images` batch by batch.
        """
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def statistics(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each channel over all pixels, float32 (C,), for pixels in 0..1.

        `indices` (M,) int64 restricts it to some images, without copying them; None: all.

        Exact up to float32 rounding and so independent of the images' order: they come from a histogram of grey
        levels. The deviation is that of the population (divides by N); a constant channel's is given as 1, so that
        normalising by it cannot divide by zero.
        """
        indices = torch.arange(len(self)) if indices is None else indices
        counts = torch.zeros(self.channels, 256, dtype=torch.float64)
        # In chunks: bincount widens its input to int64, eight bytes a pixel
        for chunk in indices.split(1024):
            for channel, levels in enumerate(self.images[chunk].unbind(1)):
                counts[channel] += torch.bincount(levels.flatten(), minlength=256)
        chances = counts / counts.sum(1, keepdim=True)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean = chances @ levels
        variance = (chances * (levels - mean[:, None]) ** 2).sum(1)
        deviation = torch.where(variance > 0, variance.sqrt(), 1.0)
        return mean.float(), deviation.float()
