"""A member's learned agent, built for a run's images."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.augment.learned.augmentor import build_augmentor
from rolekd_ray.augment.learned.vae import SmallVae, fit_vae
from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import LearnedSettings
from rolekd_ray.training.batch import Source

VAE_STEPS, VAE_IMAGES = 400, 4000
"""How long the VAE is fitted, and on how many of the images that are trained on at most."""


def new_learned(
    settings: LearnedSettings, source: Source, *, seed: int, vae: Mapping[str, Tensor] | None
) -> LearnedAgent:
    """Return a fresh learned agent on the images' device; the global generators keep their state.

    Args:
        settings: its parts, thresholds and weights.
        source: its images' channels and size count.
        seed: of its initial weights.
        vae: what `fitted_vae` returned; None where no part needs it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmentor = build_augmentor(
            settings.parts, channels=source.images.shape[1], size=source.images.shape[2],
            mean=source.views.mean, std=source.views.std,
        )  # fmt: skip
    if augmentor.vae is not None and vae is not None:
        augmentor.vae.load_state_dict(vae)
    return LearnedAgent(augmentor.to(source.images.device), **settings.model_dump(exclude={"parts"}))


def fitted_vae(source: Source, *, seed: int) -> dict[str, Tensor]:
    """Return the weights of a VAE of the images that are trained on; a function of them and the seed. Seconds."""
    chosen = torch.linspace(0, len(source.pool) - 1, min(VAE_IMAGES, len(source.pool)), device=source.pool.device)
    views = source.views.clean(source.images[source.pool[chosen.long()]])
    vae = SmallVae(views.shape[1], views.shape[2], source.views.mean, source.views.std).to(views.device)
    fit_vae(vae, views, steps=VAE_STEPS, seed=stream_key("vae", seed) % 2**63)
    return vae.state_dict()
