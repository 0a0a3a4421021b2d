"""An augmentor: parts in a row, each with a learned distribution of changes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.affine import AffineAugmentor
from rolekd_ray.augment.learned.colour import ColourAugmentor
from rolekd_ray.augment.learned.vae import SmallVae, VaeAugmentor
from rolekd_ray.augment.randomness import normals, stream_key
from rolekd_ray.errors import ConfigError, unknown_name

_MAKE: Mapping[str, Callable[[int, int, Tensor, Tensor], nn.Module]] = {
    "affine": lambda channels, size, mean, std: AffineAugmentor(),
    "colour": lambda channels, size, mean, std: ColourAugmentor(mean, std),
    "vae": lambda channels, size, mean, std: VaeAugmentor(SmallVae(channels, size, mean, std)),
}
PARTS = tuple(_MAKE)
"""Names of what an augmentor may be made of."""
_DESCRIBED_IMAGES = 256


class Augmentor(nn.Module):
    """Applies parts one after the other; each has noise of its own.

    Args:
        parts: by name, in order. Each maps (views, noise) to views, and has `noise`, its numbers per image, and
            `described(noise)`, the edits by name.
    """

    def __init__(self, parts: Mapping[str, nn.Module]):
        super().__init__()
        self.parts = nn.ModuleDict(dict(parts))
        self._widths = [int(part.noise) for part in parts.values()]  # type: ignore[arg-type]
        self.noise = sum(self._widths)
        """Standard normal numbers per image."""

    @property
    def vae(self) -> SmallVae | None:
        """The VAE that must be fitted before the first view, if there is one."""
        return next((part.vae for part in self.parts.values() if isinstance(part, VaeAugmentor)), None)

    def forward(self, views: Tensor, noise: Tensor) -> Tensor:
        """Return changed views; differentiable in the parameters.

        Args:
            views: (N, C, H, W) float32 normalised.
            noise: (N, self.noise) standard normal.

        Returns:
            Of the same shape; no image depends on another.
        """
        for part, own in zip(self.parts.values(), noise.split(self._widths, dim=1)):
            views = part(views, own)
        return views

    @torch.no_grad()
    def parameters_summary(self) -> dict[str, float]:
        """Return mean and standard deviation of every kind of edit over 256 draws: `affine.translate_x.std` and so on.

        A standard deviation near 0 is a distribution that collapsed to one change.
        """
        images = torch.arange(_DESCRIBED_IMAGES, device=next(self.parameters()).device)
        noise = normals(stream_key("learned", "summary"), images, self.noise).split(self._widths, dim=1)
        found: dict[str, float] = {}
        for (name, part), own in zip(self.parts.items(), noise):
            for edit, values in cast(Any, part).described(own).items():
                found[f"{name}.{edit}.mean"] = float(values.double().mean())
                found[f"{name}.{edit}.std"] = float(values.double().std())
        return found


def build_augmentor(parts: Sequence[str], *, channels: int, size: int, mean: Tensor, std: Tensor) -> Augmentor:
    """Return an augmentor of these parts, in this order, with bounds by default.

    Args:
        parts: names of `PARTS`, at least one, each once.
        channels: C of the images.
        size: their side, in pixels.
        mean: per channel, (C,) float in [0, 1]; views are (pixel - mean) / std.
        std: per channel, (C,) float.

    Raises:
        ConfigError: an unknown part, none, one twice, or a size that the VAE does not take.
    """
    problems = [unknown_name("learned: parts", "part", name, PARTS) for name in parts if name not in PARTS]
    if not parts or len(set(parts)) < len(parts):
        problems.append(f"learned: parts: got {list(parts)}; expected at least one part, and each once")
    if problems:
        raise ConfigError(*problems)
    return Augmentor({name: _MAKE[name](channels, size, mean, std) for name in parts})
