"""Every op against an implementation that is not ours: Pillow for geometry, torchvision for colour."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from rolekd_ray.augment.ops import OPS
from rolekd_ray.policy.space import OP_UNITS, load_space

SPACE = load_space("cifar10_pba")
AFFINE = {
    "shear_x": lambda m: (1, m, 0, 0, 1, 0),
    "shear_y": lambda m: (1, 0, 0, m, 1, 0),
    "translate_x": lambda m: (1, 0, m, 0, 1, 0),
    "translate_y": lambda m: (1, 0, 0, 0, 1, m),
}
GEOMETRY = ("rotate", *AFFINE)
COLOUR = {
    "brightness": tv.adjust_brightness,
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "sharpness": tv.adjust_sharpness,
    "posterize": lambda image, m: tv.posterize(image, int(m)),
    "solarize": lambda image, m: tv.solarize(image, m) if m < 256 else image,
    "invert": lambda image, m: tv.invert(image),
    "equalize": lambda image, m: tv.equalize(image),
    "auto_contrast": lambda image, m: tv.autocontrast(image),
}


def test_the_ops_are_those_of_the_search_space():
    assert list(OPS) == list(OP_UNITS)
    assert set(OPS) == {*GEOMETRY, *COLOUR, "cutout"}


def ours(op: str, images: Tensor, magnitude: float, fill: Tensor, dtype=torch.float32) -> Tensor:
    count = len(images)
    return OPS[op](images, torch.full((count,), magnitude, dtype=dtype), torch.full((count, 2), 0.5), fill)


def in_pillow(op: str, images: Tensor, magnitude: float, fill: Tensor) -> Tensor:
    colour = tuple(fill.tolist())

    def one(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels)
        if op == "rotate":
            return np.asarray(image.rotate(magnitude, fillcolor=colour))
        return np.asarray(image.transform(image.size, Image.Transform.AFFINE, AFFINE[op](magnitude), fillcolor=colour))

    flat = [one(np.ascontiguousarray(pixels)) for pixels in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(flat)).permute(0, 3, 1, 2)


def levels(op: str) -> list[float]:
    magnitudes = SPACE.op(op).magnitudes or (0.0,)
    return sorted({sign * m for m in magnitudes for sign in ((1, -1) if SPACE.op(op).signed else (1,))})


@pytest.mark.parametrize("op", GEOMETRY)
def test_geometry_equals_pillow_on_every_pixel_of_photographs(op, photographs, fill):
    assert len(levels(op)) == 19
    for magnitude in levels(op):
        wanted = in_pillow(op, photographs[:100], magnitude, fill)
        assert torch.equal(ours(op, photographs[:100], magnitude, fill), wanted), magnitude
        assert torch.equal(ours(op, photographs[:100], magnitude, fill, torch.float64), wanted), magnitude


@settings(max_examples=150, deadline=None)
@given(
    op=st.sampled_from(GEOMETRY),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    share=st.integers(-1000, 1000),
    seed=st.integers(0, 9),
)
def test_geometry_equals_pillow_at_any_size_and_strength(op, height, width, share, seed):
    most = {"rotate": 360, "shear_x": 2, "shear_y": 2, "translate_x": 50, "translate_y": 50}[op]
    magnitude = share * most / 1000
    if op.startswith("translate"):
        magnitude = float(round(magnitude))  # PBA's translations are whole; Pillow's other path adds up in floats
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.manual_seed(seed))
    colour = torch.tensor([1, 2, 3], dtype=torch.uint8)
    wanted = in_pillow(op, images, magnitude, colour)
    assert torch.equal(ours(op, images, magnitude, colour, torch.float64), wanted)


@pytest.mark.parametrize("op", COLOUR)
@pytest.mark.parametrize("channels", [3, 1])
def test_colour_equals_torchvision_within_one_grey_level(op, channels, photographs, fill):
    images = photographs[:, :channels]
    equal = total = 0
    for magnitude in levels(op):
        result = ours(op, images, magnitude, fill[:channels], torch.float64)
        wanted = torch.stack([COLOUR[op](image, magnitude) for image in images])
        assert (result.int() - wanted.int()).abs().max() <= 1, magnitude
        equal += (result == wanted).sum().item()
        total += wanted.numel()
    assert equal / total >= 0.996, f"{equal / total:.5f} of the pixels are equal"


@pytest.mark.parametrize("op", COLOUR)
def test_colour_equals_torchvision_on_extreme_images(op):
    noise = torch.randint(0, 256, (1, 3, 9, 7), dtype=torch.uint8, generator=torch.manual_seed(1))
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8) * 4
    flat = torch.full((1, 3, 5, 5), 77, dtype=torch.uint8)
    for images in (noise, ramp, flat, flat * 0, flat * 0 + 255, noise[..., :2], noise[..., :1, :1]):
        for magnitude in (*levels(op), *((0, 8) if op == "posterize" else (0, 1, 255) if op == "solarize" else ())):
            result = ours(op, images, magnitude, torch.zeros(3, dtype=torch.uint8), torch.float64)
            assert (result.int() - COLOUR[op](images[0], magnitude).int()).abs().max() <= 1, (images.shape, magnitude)


@pytest.mark.parametrize(
    ("op", "magnitude"),
    [(op, 0.0) for op in GEOMETRY]
    + [(op, 1.0) for op in ("brightness", "color", "contrast", "sharpness")]
    + [("posterize", 8.0), ("solarize", 256.0), ("cutout", 0.0)],
)
def test_the_neutral_magnitude_changes_nothing(op, magnitude, photographs, fill):
    assert torch.equal(ours(op, photographs, magnitude, fill), photographs)


def test_involutions(photographs, fill):
    twice = ours("invert", ours("invert", photographs, 0, fill), 0, fill)
    assert torch.equal(twice, photographs)
    there = ours("translate_x", photographs, 3, fill)
    assert torch.equal(ours("translate_x", there, -3, fill)[..., 3:], photographs[..., 3:])


def test_color_is_the_identity_on_one_channel(photographs, fill):
    assert torch.equal(ours("color", photographs[:, :1], 0.1, fill[:1]), photographs[:, :1])


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), side=st.integers(0, 30), seed=st.integers(0, 99))
def test_cutout_paints_the_clipped_square(height, width, side, seed):
    generator = torch.manual_seed(seed)
    images = torch.randint(0, 200, (3, 3, height, width), dtype=torch.uint8, generator=generator)
    centres, fill = torch.rand(3, 2, generator=generator), torch.tensor([201, 202, 203], dtype=torch.uint8)
    result = OPS["cutout"](images, torch.full((3,), float(side)), centres, fill)
    for image, centre, got in zip(images, centres, result):
        row, column = int(centre[0] * height), int(centre[1] * width)
        wanted = image.clone()
        for y in range(max(0, row - side // 2), min(height, row + side // 2)):
            for x in range(max(0, column - side // 2), min(width, column + side // 2)):
                wanted[:, y, x] = fill
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 5, 9), (1, 1, 1), (3, 2, 17)])
def test_a_result_depends_on_its_own_sample_alone(op, shape, fill):
    generator = torch.manual_seed(3)
    images = torch.randint(0, 256, (33, *shape), dtype=torch.uint8, generator=generator)
    before = images.clone()
    space_levels = torch.tensor(levels(op))
    magnitudes = space_levels[torch.randint(0, len(space_levels), (33,), generator=generator)]
    centres = torch.rand(33, 2, generator=generator)
    together = OPS[op](images, magnitudes, centres, fill[: shape[0]])
    assert together.shape == images.shape and together.dtype == torch.uint8
    assert torch.equal(images, before), "an op wrote into its input"
    for i in range(33):
        alone = OPS[op](images[i : i + 1], magnitudes[i : i + 1], centres[i : i + 1], fill[: shape[0]])
        assert torch.equal(alone[0], together[i])
    empty = OPS[op](images[:0], magnitudes[:0], centres[:0], fill[: shape[0]])
    assert empty.shape == (0, *shape)
