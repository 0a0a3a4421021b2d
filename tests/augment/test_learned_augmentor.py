"""Augmentors made of parts by name."""

import math

import pytest
import torch
from torch import nn

from rolekd_ray.augment.learned.augmentor import PARTS, build_augmentor
from rolekd_ray.augment.learned.vae import fit_vae
from rolekd_ray.errors import ConfigError

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


def build(*parts: str):
    return build_augmentor(parts, channels=3, size=8, mean=MEAN, std=STD)


def test_parts_are_applied_in_order_each_with_its_noise():
    torch.manual_seed(0)
    views, made = torch.randn(4, 3, 8, 8).clamp(-1.7, 1.9), build("colour", "affine")
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    noise = torch.randn(4, made.noise)
    first, second = made.parts["colour"], made.parts["affine"]
    assert torch.equal(made(views, noise), second(first(views, noise[:, :8]), noise[:, 8:]))
    assert not torch.allclose(made(views, noise), first(second(views, noise[:, 8:]), noise[:, :8]), atol=1e-2)


def test_noise_is_what_all_parts_take():
    assert {parts: build(*parts).noise for parts in (("affine",), ("affine", "colour"), PARTS)} == {
        ("affine",): 8, ("affine", "colour"): 16, PARTS: 24
    }  # fmt: skip


def test_the_vae_is_there_to_be_fitted():
    assert build("affine").vae is None
    made = build("affine", "vae")
    fit_vae(made.vae, torch.zeros(8, 3, 8, 8), steps=1, seed=0)
    assert made(torch.zeros(2, 3, 8, 8), torch.zeros(2, 16)).shape == (2, 3, 8, 8)
    names = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert names == {f"parts.{part}.edits.{name}" for part in ("affine", "vae") for name in ("bias", "weight")}


def test_the_summary_says_how_edits_are_spread():
    made = build("affine", "colour", "vae")
    nn.init.constant_(made.parts["affine"].edits.bias[2:3], 0.2)
    found = made.parameters_summary()
    assert len(found) == 2 * (6 + 8 + 1) and all(math.isfinite(value) for value in found.values())
    assert found["affine.scale_x.mean"] == pytest.approx(1, abs=0.01)
    assert found["affine.translate_y.mean"] == pytest.approx(0, abs=0.01)
    row = made.parts["affine"].edits.weight[5].detach()
    assert found["affine.translate_y.std"] == pytest.approx(float(row.norm()), rel=0.15)
    assert found["affine.translate_x.mean"] == pytest.approx(0.5 * math.tanh(0.4), abs=0.01)
    assert found == made.parameters_summary()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (["afine"], "unknown part 'afine'.*Did you mean 'affine'"),
        ([], "expected at least one part"),
        (["affine", "affine"], "each once"),
    ],
)
def test_wrong_parts_are_errors(parts, words):
    with pytest.raises(ConfigError, match=words):
        build(*parts)
