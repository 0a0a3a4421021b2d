"""Built-in corruptions: against plain arithmetic, their severities, and what they must not depend on."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from rolekd_ray.augment.corruptions import SEVERITIES, STRENGTHS, corrupt
from rolekd_ray.data.sources import load_image_set

FILL = {1: torch.tensor([90], dtype=torch.uint8), 3: torch.tensor([200, 10, 90], dtype=torch.uint8)}


def pictures(channels: int = 3, count: int = 6, size: tuple[int, int] = (16, 20)) -> Tensor:
    """Smooth pictures with structure, so that each corruption has something to destroy."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 4, 5, generator=generator)
    return (torch.nn.functional.interpolate(coarse, size, mode="bicubic") * 255).clamp(0, 255).byte()


def corrupted(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    return corrupt(images, name, severity, seed=seed, fill=FILL[images.shape[1]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", STRENGTHS)
def test_what_all_have_in_common(name, channels):
    images = pictures(channels)
    before, state = images.clone(), torch.get_rng_state()
    distances = []
    for severity in range(1, SEVERITIES + 1):
        found = corrupted(images, name, severity)
        assert found.shape == images.shape and found.dtype == torch.uint8 and not torch.equal(found, images)
        assert torch.equal(corrupted(images, name, severity), found), "not the same again"
        assert torch.equal(corrupted(images[:4], name, severity), found[:4]), "depends on the batch"
        distances.append((found.float() - images.float()).square().mean().sqrt().item())
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    assert all(later > earlier for earlier, later in pairwise(distances)), distances
    drawn = name in ("noise", "shift", "rotation")
    assert torch.equal(corrupted(images, name, 3, seed=1), corrupted(images, name, 3)) != drawn


@pytest.mark.parametrize("name", STRENGTHS)
def test_real_digits_of_eight_pixels(name):
    images = load_image_set("digits", None, split="test").images[:50]
    found = [corrupted(images, name, severity) for severity in range(1, SEVERITIES + 1)]
    assert all((one != images).flatten(1).any(1).float().mean() > 0.5 for one in found)


def test_brightness_by_hand():
    images = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    assert corrupted(images, "brightness", 5).flatten().tolist() == [128, 228, 255, 255]  # 127.5 to even
    assert corrupted(images, "brightness", 2).flatten().tolist() == [51, 151, 251, 255]


def test_contrast_by_hand():
    """0.1 of the distance from the mean grey, which is 100."""
    images = torch.tensor([0, 50, 150, 200], dtype=torch.uint8).view(1, 1, 2, 2)
    assert corrupted(images, "contrast", 5).flatten().tolist() == [90, 95, 105, 110]


@pytest.mark.parametrize("severity", range(1, 6))
def test_noise_has_its_deviation_and_no_bias(severity):
    grey = torch.full((40, 1, 16, 16), 127, dtype=torch.uint8)
    values = (corrupted(grey, "noise", severity).double() - 127) / 255
    share = STRENGTHS["noise"][severity - 1]
    standard_error = share / values.numel() ** 0.5
    assert abs(values.mean()) < 4 * standard_error
    assert values.std().item() == pytest.approx(share, rel=0.03)
    assert ((values.abs() < share).double().mean() - 0.683).abs() < 0.03, "not a normal distribution"
    assert not torch.equal(values[0], values[1]), "images share their noise"


@pytest.mark.parametrize("severity", range(1, 6))
def test_jpeg_is_pillows(severity):
    images = pictures()
    found = corrupted(images, "jpeg", severity)
    for image, one in zip(images, found):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=int(STRENGTHS["jpeg"][severity - 1]))
        assert np.array_equal(np.asarray(Image.open(file)), one.permute(1, 2, 0).numpy())


def test_blur_is_a_gaussian():
    """A dot becomes the sampled Gaussian; on a large picture Pillow's approximation by boxes is close."""
    dot = torch.zeros(1, 1, 16, 20, dtype=torch.uint8)
    dot[0, 0, 8, 10] = 255
    deviation = 16 * 0.04 + 0.3
    line = np.exp(-0.5 * ((np.arange(20) - 10) / deviation) ** 2)
    column = np.exp(-0.5 * ((np.arange(16) - 8) / deviation) ** 2)
    expected = 255 * np.outer(column / column.sum(), line / line.sum())
    assert np.abs(corrupted(dot, "blur", 3)[0, 0].numpy() - expected).max() <= 1
    large = pictures(3, 1, (200, 200))
    pillow = Image.fromarray(large[0].permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(5.3))
    inner = np.s_[40:-40, 40:-40]
    difference = corrupted(large, "blur", 2)[0].permute(1, 2, 0).numpy()[inner] - np.asarray(pillow)[inner].astype(int)
    assert np.abs(difference).max() <= 4


@pytest.mark.parametrize("severity", range(1, 6))
def test_shifts_go_all_four_ways_by_their_share_of_the_side(severity):
    images = pictures(3, 60)
    share = STRENGTHS["shift"][severity - 1]
    down, right = max(1, round(share * 16)), max(1, round(share * 20))
    moves = {"up": (-down, 0), "down": (down, 0), "left": (0, -right), "right": (0, right)}
    seen = []
    for image, found in zip(images.numpy(), corrupted(images, "shift", severity).numpy()):
        for name, (rows, columns) in moves.items():
            expected = np.tile(FILL[3].numpy()[:, None, None], (1, 16, 20))
            for y in range(16):
                for x in range(20):
                    if 0 <= y - rows < 16 and 0 <= x - columns < 20:
                        expected[:, y, x] = image[:, y - rows, x - columns]
            if np.array_equal(expected, found):
                seen.append(name)
    assert len(seen) == 60 and set(seen) == set(moves)


@pytest.mark.parametrize("severity", range(1, 6))
def test_rotations_are_pillows_to_either_side(severity):
    images, degrees = pictures(3, 20), STRENGTHS["rotation"][severity - 1]
    seen = []
    for image, found in zip(images, corrupted(images, "rotation", severity)):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        for sign in (-1, 1):
            turned = picture.rotate(sign * degrees, fillcolor=tuple(FILL[3].tolist()))
            if np.array_equal(np.asarray(turned), found.permute(1, 2, 0).numpy()):
                seen.append(sign)
    assert len(seen) == 20 and set(seen) == {-1, 1}


def test_severities_of_an_image_share_their_directions():
    """So accuracy by severity is a curve of the same images getting worse."""
    images = torch.zeros(30, 1, 20, 20, dtype=torch.uint8)
    moved = [corrupted(images, "shift", severity) == 90 for severity in (1, 5)]
    assert (moved[0] <= moved[1]).all() and moved[0].any()
