"""The affine part: identity, shifts, gradients, bounds."""

import pytest
import torch
from torch import nn

from rolekd_ray.augment.learned.affine import ENTRIES, AffineAugmentor, moved
from rolekd_ray.augment.learned.edits import Edits


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


def with_map(theta: list[list[float]]) -> torch.Tensor:
    return torch.tensor([theta], dtype=torch.float64)


def still(part: AffineAugmentor) -> AffineAugmentor:
    nn.init.zeros_(part.edits.weight)
    return part


@pytest.mark.parametrize("side", [8, 16, 32])
def test_without_an_edit_the_view_is_the_image_to_the_last_bit(side):
    views = torch.randn(5, 3, side, side)
    assert torch.equal(still(AffineAugmentor())(views, torch.randn(5, 8)), views)


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 96, 96), (3, 33, 50)])
def test_without_an_edit_other_sizes_are_the_image_to_the_rounding_of_places(shape):
    views = torch.rand(3, *shape)
    assert torch.allclose(still(AffineAugmentor())(views, torch.randn(3, 8)), views, atol=2e-5)
    whole = still(AffineAugmentor()).double()(views.double(), torch.randn(3, 8))
    assert torch.allclose(whole, views.double(), atol=1e-12)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 3), (-2, 4), (5, -5), (20, 0)])
def test_a_translation_by_whole_pixels_is_a_shift_with_zeros(right, down):
    height, width = 12, 20
    images = torch.randn(1, 2, height, width, dtype=torch.float64)
    wanted = torch.zeros_like(images)
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                wanted[..., row, column] = images[..., row + down, column + right]
    got = moved(images, with_map([[1, 0, 2 * right / width], [0, 1, 2 * down / height]]))
    assert torch.allclose(got, wanted, atol=1e-12)


def by_hand(image: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Bilinear sampling of one image (H, W), pixel by pixel; 0 outside."""
    height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1
            at_x, at_y = (float(theta[i, 0] * x + theta[i, 1] * y + theta[i, 2]) for i in (0, 1))
            right, down = ((at_x + 1) * width - 1) / 2, ((at_y + 1) * height - 1) / 2
            for r in (int(down // 1), int(down // 1) + 1):
                for c in (int(right // 1), int(right // 1) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[row, column] += (1 - abs(down - r)) * (1 - abs(right - c)) * image[r, c]
    return out


def test_any_map_equals_sampling_by_hand():
    part = AffineAugmentor().double()
    nn.init.normal_(part.edits.weight, std=0.5)
    noise = torch.randn(4, 8, dtype=torch.float64)
    images = torch.randn(4, 1, 9, 7, dtype=torch.float64)
    maps = part.maps(noise).detach()
    got = part(images, noise)
    for image, theta, view in zip(images, maps, got):
        assert torch.allclose(view[0], by_hand(image[0], theta), atol=1e-12)


def test_the_maps_are_the_formula():
    part = AffineAugmentor(linear=0.3, translation=0.6)
    nn.init.normal_(part.edits.bias, std=0.3)
    nn.init.normal_(part.edits.weight, std=0.3)
    noise = torch.randn(3, 8)
    bounds = [0.3, 0.3, 0.6, 0.3, 0.3, 0.6]
    bias, weight = part.edits.bias.detach(), part.edits.weight.detach()
    for theta, own in zip(part.maps(noise).detach(), noise):
        for k, bound in enumerate(bounds):
            raw = float(bias[k]) + sum(float(w * e) for w, e in zip(weight[k], own))
            wanted = bound * torch.tanh(torch.tensor(raw / bound)) + (k in (0, 4))
            assert float(theta.flatten()[k]) == pytest.approx(float(wanted), abs=1e-6)
    assert list(part.described(noise)) == list(ENTRIES)


def test_gradcheck():
    part = AffineAugmentor(noise=2).double()
    views = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 2, dtype=torch.float64)
    bias = torch.randn(6, dtype=torch.float64).mul(0.2).requires_grad_()
    weight = torch.randn(6, 2, dtype=torch.float64).mul(0.2).requires_grad_()

    def view(views, bias, weight):
        return torch.func.functional_call(part, {"edits.bias": bias, "edits.weight": weight}, (views, noise))

    assert torch.autograd.gradcheck(view, (views, bias, weight))


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_extreme_parameters_stay_in_bounds_and_finite(size, photographs):
    part = AffineAugmentor()
    nn.init.normal_(part.edits.weight, std=size)
    nn.init.normal_(part.edits.bias, std=size)
    noise = torch.randn(200, 8)
    edits = part.edits(noise)
    assert (edits.abs() <= part.edits.bounds).all() and edits.abs().max() > 0.49
    view = part(photographs.float() / 255, noise)
    assert view.isfinite().all()
    assert view.min() >= 0 and view.max() <= 1 + 1e-6
    assert (torch.linalg.det(part.maps(noise)[:, :, :2]) > 0).all()  # no map mirrors


def test_an_edit_of_bound_0_stays_0():
    edits = Edits("test", torch.tensor([0.0, 1.0]), 3)
    nn.init.ones_(edits.bias)
    found = edits(torch.randn(5, 3))
    assert (found[:, 0] == 0).all() and (found[:, 1] != 0).all()
    found.sum().backward()
    assert edits.bias.grad.isfinite().all() and edits.weight.grad.isfinite().all()


def test_the_first_numbers_belong_to_no_generator():
    torch.manual_seed(1)
    first = AffineAugmentor()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = AffineAugmentor()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.edits.weight, second.edits.weight)
    assert float(first.edits.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    assert (first.edits.bias == 0).all()


def test_a_batch_of_no_image_has_gradients():
    part = AffineAugmentor()
    view = part(torch.zeros(0, 3, 8, 8), torch.zeros(0, 8))
    assert view.shape == (0, 3, 8, 8)
    (gradient,) = torch.autograd.grad(view.sum(), part.edits.bias)
    assert (gradient == 0).all()
