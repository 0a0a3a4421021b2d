"""The small VAE and the augmentor that edits its latents."""

import copy

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.vae import SmallVae, VaeAugmentor, fit_vae
from rolekd_ray.errors import ConfigError

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


@pytest.fixture(scope="module")
def views(photographs) -> Tensor:
    return (photographs.float() / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


@pytest.fixture(scope="module")
def fitted(views) -> tuple[SmallVae, float]:
    vae = SmallVae(3, 32, MEAN, STD)
    return vae, fit_vae(vae, views[:150], steps=40, seed=0)


def noise(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def pixels(views: Tensor) -> Tensor:
    return views * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)


def test_it_learns_to_draw_photographs_it_was_not_fitted_on(views, fitted):
    """Grey is 0.25 away, each image's mean colour 0.21."""
    vae, error = fitted
    unseen = views[150:]
    found = float((pixels(vae(unseen)) - pixels(unseen)).square().mean().sqrt())
    flat = unseen.mean((2, 3), keepdim=True).expand_as(unseen)
    assert found < 0.6 * float((pixels(flat) - pixels(unseen)).square().mean().sqrt())
    own = float((pixels(vae(views[:150])) - pixels(views[:150])).square().mean().sqrt())
    assert error == pytest.approx(own, rel=1e-4)


def test_fitting_is_a_function_of_its_seed(views):
    torch.manual_seed(0)
    one, two, other = (SmallVae(3, 32, MEAN, STD) for _ in range(3))
    errors = [fit_vae(vae, views[:40], steps=2, seed=seed) for vae, seed in ((one, 4), (two, 4), (other, 5))]
    assert errors[0] == errors[1] != errors[2]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    before = copy.deepcopy(one.state_dict())
    state = torch.get_rng_state()
    fit_vae(one, views[:40], steps=2, seed=4)  # anew, whatever it was
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fitted_vae_is_frozen_and_small(fitted):
    vae, _ = fitted
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in vae.parameters())
    assert 80_000 < sum(parameter.numel() for parameter in vae.parameters()) < 100_000
    assert (vae.spread > 0).all()


def test_an_edit_of_0_is_the_reconstruction(views, fitted):
    part = VaeAugmentor(fitted[0])
    nn.init.zeros_(part.edits.weight)
    assert torch.allclose(part(views[:50], noise(50)), fitted[0](views[:50]), atol=1e-5)


def test_an_edit_moves_latents_by_shares_of_their_spread(views, fitted):
    part = VaeAugmentor(fitted[0], bound=0.7)
    nn.init.normal_(part.edits.weight, std=0.2, generator=torch.Generator().manual_seed(0))
    vae, edits = fitted[0], part.edits(noise(3)).view(3, 8, 8, 8)
    for n in range(3):
        latents = torch.stack([vae.encode(views[n : n + 1])[0][0, c] + edits[n, c] * vae.spread[c] for c in range(8)])
        assert torch.allclose(part(views[:3], noise(3))[n], vae.decode(latents[None])[0], atol=1e-4)


@pytest.mark.parametrize("size", [1.0, 1e20])
def test_pixels_stay_pixels_however_large_the_parameters(views, fitted, size):
    part = VaeAugmentor(fitted[0])
    nn.init.normal_(part.edits.weight, std=size, generator=torch.Generator().manual_seed(0))
    found = pixels(part(views[:20], noise(20)))
    assert found.isfinite().all() and found.min() >= -1e-6 and found.max() <= 1 + 1e-6
    assert not torch.allclose(found, pixels(fitted[0](views[:20])), atol=0.05)


def test_gradients_reach_the_edits_and_nothing_of_the_vae(views, fitted):
    part = VaeAugmentor(fitted[0])
    part(views[:40], noise(40)).square().mean().backward()  # two runs of the networks
    assert (part.edits.bias.grad != 0).all() and (part.edits.weight.grad != 0).all()
    assert all(parameter.grad is None for parameter in part.vae.parameters())


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 16), (3, 16)])
def test_other_sizes(channels, size):
    mean, std = torch.full((channels,), 0.3), torch.full((channels,), 0.2)
    vae = SmallVae(channels, size, mean, std)
    fit_vae(vae, torch.randn(20, channels, size, size, generator=torch.Generator().manual_seed(0)), steps=2, seed=0)
    assert VaeAugmentor(vae)(torch.zeros(3, channels, size, size), noise(3)).shape == (3, channels, size, size)


@pytest.mark.parametrize("size", [6, 30, 68])
def test_a_size_it_does_not_take_is_an_error(size):
    with pytest.raises(ConfigError, match=f"vae: image size: got {size}; expected a multiple of 4 from 8 to 64"):
        SmallVae(3, size, MEAN, STD)


def test_one_that_was_never_fitted_is_an_error_and_a_loaded_one_is_not(views, fitted):
    part = VaeAugmentor(SmallVae(3, 32, MEAN, STD))
    with pytest.raises(ConfigError, match="never fitted"):
        part(views[:2], noise(2))
    part.vae.load_state_dict(fitted[0].state_dict())
    assert torch.equal(part(views[:2], noise(2)), VaeAugmentor(fitted[0])(views[:2], noise(2)))
