"""A learned distribution of changes of colour."""

import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.edits import Edits


class ColourAugmentor(nn.Module):
    """Changes brightness, contrast, and each channel's gain and shift, drawn per image from one learned distribution.

    Of a pixel p in [0, 1], with the dataset's mean colour m:

        p' = clamp(m + (p - m)(1 + contrast)(1 + gain) + brightness + shift, 0, 1)

    Contrast is about the mean colour, not the image's own: a mean over an image would be rounded by how it is summed.
    Edits of 0 give the image back.

    Args:
        mean: per channel, (C,) float in [0, 1]; views are (p - mean) / std.
        std: per channel, (C,) float.
        noise: standard normal numbers per image.
        brightness: most that all channels move together, in [0, 1].
        contrast: most that the distance from the mean colour changes, as a share below 1.
        gain: the same per channel.
        shift: most that one channel moves, in [0, 1].

    Source: a design (unverified, not the paper's).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        *,
        noise: int = 8,
        brightness: float = 0.3,
        contrast: float = 0.5,
        gain: float = 0.3,
        shift: float = 0.2,
    ):
        super().__init__()
        self.noise, channels = noise, len(mean)
        bounds = torch.tensor([brightness, contrast] + [gain] * channels + [shift] * channels)
        self.edits = Edits("colour", bounds, noise)
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))

    def forward(self, views: Tensor, noise: Tensor) -> Tensor:
        """Return views (N, C, H, W) of pixels in [0, 1], if those given are; dtype as given, differentiable."""
        channels = len(self.mean)
        edits = self.edits(noise).to(views.dtype)[:, :, None, None]
        brightness, contrast, gain, shift = edits.split([1, 1, channels, channels], dim=1)
        distance = views * self.std
        pixels = self.mean + distance
        edited = self.mean + distance * (1 + contrast) * (1 + gain) + brightness + shift
        # As a difference: without an edit it is 0, whatever the constants round to
        return views + (edited.clamp(0, 1) - pixels) / self.std

    def described(self, noise: Tensor) -> dict[str, Tensor]:
        """Return the edits by name, each (N,)."""
        channels = range(len(self.mean))
        names = ["brightness", "contrast", *(f"gain_{c}" for c in channels), *(f"shift_{c}" for c in channels)]
        return dict(zip(names, self.edits(noise).unbind(1)))
