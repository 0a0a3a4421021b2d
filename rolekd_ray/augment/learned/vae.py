"""A small variational autoencoder, and the augmentor that edits images in its latents."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.augment.learned.edits import Edits
from rolekd_ray.errors import ConfigError

SIZES = range(8, 65, 4)
"""Sides of images, in pixels, that the networks take."""
_CHUNK = 32  # images that are computed together, always: a convolution's bits depend on the batch's size
_BATCH, _LEARNING_RATE = 32, 3e-3


class SmallVae(nn.Module):
    """A convolutional VAE for images of 8 to 64 pixels: about 90,000 parameters, latents (8, side / 4, side / 4).

    It takes and gives normalised views; what it gives are pixels in [0, 1]. It must be fitted (`fit_vae`) or loaded.

    Args:
        channels: C of the images.
        size: their side, in pixels, a multiple of 4.
        mean: per channel, (C,) float in [0, 1]; views are (pixel - mean) / std.
        std: per channel, (C,) float.

    Raises:
        ConfigError: a size that it does not take.

    Source: Kingma and Welling, arXiv 1312.6114. That HARD edits images through a pretrained VAE stands in its abstract;
    it is said to be a VDVAE, hundreds of times larger than this one (unverified), so this is a design.
    """

    mean: Tensor
    std: Tensor
    spread: Tensor
    fitted: Tensor

    def __init__(self, channels: int, size: int, mean: Tensor, std: Tensor, *, width: int = 32, latents: int = 8):
        super().__init__()
        if size not in SIZES:
            expected = f"a multiple of 4 from {SIZES[0]} to {SIZES[-1]}"
            raise ConfigError(f"learned: vae: image size: got {size}; expected {expected}")
        self.shape = (latents, size // 4, size // 4)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.ELU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ELU(),
            nn.Conv2d(2 * width, 2 * latents, 3, 1, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(latents, 2 * width, 3, 1, 1), nn.ELU(), nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ELU(),
            nn.Conv2d(2 * width, width, 3, 1, 1), nn.ELU(),
            nn.Conv2d(width, 4 * channels, 3, 1, 1), nn.PixelShuffle(2), nn.Sigmoid(),
        )  # fmt: skip
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))
        self.register_buffer("spread", torch.ones(latents, 1, 1))
        self.register_buffer("fitted", torch.tensor(False))
        self.requires_grad_(False)

    def encode(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance of the latents, each (N, *shape), of views (N, C, H, W)."""
        mean, log_variance = self.encoder(views).chunk(2, dim=1)
        return mean, log_variance.clamp(-12, 4)

    def decode(self, latents: Tensor) -> Tensor:
        """Return views (N, C, H, W) of latents (N, *shape)."""
        return (self.decoder(latents) - self.mean) / self.std

    def forward(self, views: Tensor) -> Tensor:
        """Return the views' reconstructions, from the means of their latents."""
        return self.decode(self.encode(views)[0])


def fit_vae(vae: SmallVae, views: Tensor, *, steps: int, seed: int, pixel_noise: float = 0.05) -> float:
    """Train a VAE anew and freeze it; a function of its shape, the views and the arguments alone.

    Args:
        vae: what it was before is lost, its initial weights included.
        views: (N, C, H, W) float32 normalised, of the images of the training split; on the VAE's device.
        steps: of Adam, each on 32 views, drawn anew.
        seed: of initial weights, draws and noise.
        pixel_noise: standard deviation of a pixel about its reconstruction; lower: sharper, and latents less smooth.

    Returns:
        The error of reconstructions of at most 1,000 of the views: the root mean square, pixels being in [0, 1].
    """
    generator = torch.Generator().manual_seed(seed)
    _initialise(vae, generator)
    vae.requires_grad_(True)
    optimiser = torch.optim.Adam(vae.parameters(), _LEARNING_RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = _LEARNING_RATE * (1 - step / steps)
        batch = views[torch.randint(len(views), (_BATCH,), generator=generator).to(views.device)]
        loss = _loss(vae, batch, generator, pixel_noise)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 100.0)
        optimiser.step()
    vae.zero_grad()
    vae.requires_grad_(False)
    seen = views[:1000].split(_CHUNK)
    with torch.no_grad():
        vae.spread.copy_(torch.cat([vae.encode(part)[0] for part in seen]).std((0, 2, 3)).view(-1, 1, 1))
        vae.fitted.fill_(True)
        return _pixel_error(vae, views[:1000])


def _initialise(vae: SmallVae, generator: torch.Generator) -> None:
    with torch.no_grad():
        for layer in vae.modules():
            if isinstance(layer, nn.Conv2d):
                drawn = torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5
                layer.weight.copy_(drawn)
                assert layer.bias is not None
                layer.bias.zero_()


def _loss(vae: SmallVae, views: Tensor, generator: torch.Generator, pixel_noise: float) -> Tensor:
    """Return the negative evidence bound per image, less constants."""
    mean, log_variance = vae.encode(views)
    noise = torch.randn(mean.shape, generator=generator).to(views.device)
    rebuilt = vae.decode(mean + (log_variance / 2).exp() * noise)
    error = ((rebuilt - views) * vae.std).square().sum() / (2 * pixel_noise**2)
    divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
    return (error + divergence) / len(views)


def _pixel_error(vae: SmallVae, views: Tensor) -> float:
    squares = [((vae(part) - part) * vae.std).square().sum() for part in views.split(_CHUNK)]
    return float((torch.stack(squares).sum() / views.numel()).sqrt())


class VaeAugmentor(nn.Module):
    """Moves images in the latents of a frozen VAE, by edits drawn per image from one learned distribution.

    An edit of 0 gives the VAE's reconstruction, not the image: what a small VAE cannot draw is lost in every view.

    Args:
        vae: fitted, or to be fitted before the first view.
        noise: standard normal numbers per image.
        bound: most that a latent moves, in standard deviations of its channel over the images it was fitted on.

    Source: a design (unverified, not the paper's).
    """

    def __init__(self, vae: SmallVae, *, noise: int = 8, bound: float = 1.5):
        super().__init__()
        self.noise, self.vae = noise, vae
        self.edits = Edits("vae", torch.full((torch.Size(vae.shape).numel(),), bound), noise)
        self._ready = False

    def forward(self, views: Tensor, noise: Tensor) -> Tensor:
        """Return edited views (N, C, H, W) of pixels in [0, 1]; dtype as given, differentiable.

        Raises:
            ConfigError: the VAE was neither fitted nor loaded.
        """
        self._check_fitted()
        edits = self.edits(noise).to(views.dtype).view(-1, *self.vae.shape)
        return torch.cat([self._edited(*parts) for parts in zip(views.split(_CHUNK), edits.split(_CHUNK))])

    def described(self, noise: Tensor) -> dict[str, Tensor]:
        """Return all latents' edits, flat."""
        return {"latents": self.edits(noise).flatten()}

    def _edited(self, views: Tensor, edits: Tensor) -> Tensor:
        lacking = _CHUNK - len(views)
        views, edits = (F.pad(part, (0, 0) * 3 + (0, lacking)).contiguous() for part in (views, edits))
        latents = self.vae.encode(views)[0] + edits * self.vae.spread
        return self.vae.decode(latents)[: _CHUNK - lacking]

    def _check_fitted(self) -> None:
        self._ready = self._ready or bool(self.vae.fitted)  # asks the device until it is so, not for ever
        if not self._ready:
            raise ConfigError("learned: vae: got one that was never fitted; expected fit_vae, or a checkpoint's")
