"""The colour part: the formula, identity, the range of pixels."""

import pytest
import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.colour import ColourAugmentor

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


@pytest.fixture
def views(photographs) -> Tensor:
    return (photographs[:50].float() / 255 - MEAN.view(-1, 1, 1)) / STD.view(-1, 1, 1)


def pixels(views: Tensor) -> Tensor:
    return views * STD.view(-1, 1, 1) + MEAN.view(-1, 1, 1)


def stirred(std: float, **bounds: float) -> ColourAugmentor:
    made, generator = ColourAugmentor(MEAN, STD, **bounds), torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return made


def noise(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def test_without_an_edit_the_view_is_the_image(views):
    part = ColourAugmentor(MEAN, STD)
    nn.init.zeros_(part.edits.weight)
    assert torch.allclose(part(views, noise(50)), views, atol=1e-6)


def test_equals_the_formula_channel_by_channel(views):
    part = stirred(0.2)
    edits = {name: values.detach() for name, values in part.described(noise(50)).items()}
    got = pixels(part(views, noise(50)).detach())
    for n in range(50):
        for c in range(3):
            factor = (1 + edits["contrast"][n]) * (1 + edits[f"gain_{c}"][n])
            moved = MEAN[c] + (pixels(views)[n, c] - MEAN[c]) * factor + edits["brightness"][n] + edits[f"shift_{c}"][n]
            assert torch.allclose(got[n, c], moved.clamp(0, 1), atol=1e-5)
    assert all(values.std() > 0.01 for values in edits.values())


@pytest.mark.parametrize("size", [0.3, 1e4, 1e30])
def test_pixels_stay_pixels_and_edits_in_bounds(views, size):
    part = stirred(size, brightness=0.9, contrast=0.9)
    edits = part.edits(noise(50))
    assert (edits.abs() <= part.edits.bounds).all()
    found = pixels(part(views, noise(50)))
    assert found.min() >= -1e-6 and found.max() <= 1 + 1e-6
    assert (found < 0.01).any() and (found > 0.99).any()


def test_gradients_reach_every_parameter_and_the_views(views):
    part, given = stirred(0.05), views.clone().requires_grad_()
    part(given, noise(50)).square().mean().backward()
    assert (part.edits.bias.grad != 0).all() and (part.edits.weight.grad != 0).all()
    assert (given.grad != 0).any()


def test_gradcheck():
    part = stirred(0.05).double()
    images = (torch.rand(2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5) * 2
    given = noise(2).double()

    def view(images, bias, weight):
        return torch.func.functional_call(part, {"edits.bias": bias, "edits.weight": weight}, (images, given))

    leaves = (images, part.edits.bias.detach().clone(), part.edits.weight.detach().clone())
    assert torch.autograd.gradcheck(view, tuple(leaf.requires_grad_() for leaf in leaves))
    assert pixels(view(*leaves).float()).min() > 0 and pixels(view(*leaves).float()).max() < 1  # no kink was near


def test_one_channel():
    part = ColourAugmentor(torch.tensor([0.3]), torch.tensor([0.2]))
    assert part(torch.zeros(4, 1, 8, 8), noise(4)).shape == (4, 1, 8, 8)
    assert list(part.described(noise(4))) == ["brightness", "contrast", "gain_0", "shift_0"]
