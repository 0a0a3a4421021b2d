"""The last step of every view: crop, flip, cutout, normalise."""

import pytest
import torch
from scipy.stats import chi2

from rolekd_ray.augment.base import BaseAugmentation
from rolekd_ray.roles import Role

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
AT = {"seed": 5, "role": Role.STUDENT, "epoch": 3}


def base(padding: int = 0, flip: bool = False, cutout: int = 0, channels: int = 3) -> BaseAugmentation:
    return BaseAugmentation(
        crop_padding_pixels=padding, flip=flip, cutout_pixels=cutout, mean=MEAN[:channels], std=STD[:channels]
    )


def images(count: int, *shape: int) -> torch.Tensor:
    """Values from 0 up that name the pixel, so that a view shows where each came from; needs C H W <= 256."""
    return torch.arange(shape[0] * shape[1] * shape[2], dtype=torch.uint8).view(1, *shape).repeat(count, 1, 1, 1)


def test_normalise_equals_the_formula_and_torchvision(photographs):
    from torchvision.transforms.v2 import functional as tv

    wanted = tv.normalize(photographs.float() / 255, MEAN.tolist(), STD.tolist())
    assert torch.allclose(base().normalise(photographs), wanted, atol=2e-6)


def test_without_augmentation_a_view_is_the_normalised_image(photographs):
    view = base()(photographs, torch.arange(len(photographs)), **AT)
    assert torch.equal(view, base().normalise(photographs))
    assert view.dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 7, 10)])
@pytest.mark.parametrize(("padding", "flip", "cutout"), [(4, True, 16), (0, True, 4), (2, False, 0), (20, True, 3)])
def test_batch_composition_and_order_change_no_bit(shape, padding, flip, cutout):
    generator = torch.manual_seed(0)
    made = torch.randint(0, 256, (300, *shape), dtype=torch.uint8, generator=generator)
    before, indices = made.clone(), torch.arange(300) * 3
    step = base(padding, flip, cutout, shape[0])
    whole = step(made, indices, **AT)
    shuffled = torch.randperm(300, generator=generator)
    assert torch.equal(step(made[shuffled], indices[shuffled], **AT), whole[shuffled])
    for size in (1, 33):
        parts = [step(m, i, **AT) for m, i in zip(made.split(size), indices.split(size))]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(made, before)
    assert step(made[:0], indices[:0], **AT).shape == (0, *shape)


def by_hand(image: torch.Tensor, padding: int, down: int, right: int, mirrored: bool) -> torch.Tensor:
    """Pad, crop and mirror one normalised image the plain way."""
    height, width = image.shape[-2:]
    padded = torch.zeros(image.shape[0], height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = image.flip(-1) if mirrored else image
    return padded[:, down : down + height, right : right + width]


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (2, False), (0, True)])
def test_every_view_is_one_of_the_crops_and_all_are_equally_likely(padding, flip):
    """Chi-square over all (2 padding + 1)² offsets, the last included, and both mirrorings; 1e-4 tail, fixed seed."""
    count, shape = 20_000, (3, 5, 6)
    made = images(count, *shape)
    step = base(padding, flip)
    views = step(made, torch.arange(count), **AT).flatten(1)
    offsets = range(2 * padding + 1)
    crops = [
        by_hand(step.normalise(made[0]), padding, down, right, mirrored)
        for down in offsets
        for right in offsets
        for mirrored in ((False, True) if flip else (False,))
    ]
    distances = torch.cdist(views, torch.stack(crops).flatten(1), p=1)
    nearest = distances.argmin(1)
    assert torch.equal(torch.stack(crops).flatten(1)[nearest], views)
    counts = torch.bincount(nearest, minlength=len(crops)).double()
    expected = count / len(crops)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert chi2.ppf(1e-4, len(crops) - 1) < statistic < chi2.isf(1e-4, len(crops) - 1)


def test_padded_and_cut_pixels_are_exactly_zero():
    made = torch.full((500, 3, 32, 32), 200, dtype=torch.uint8)
    shown = base().normalise(made[0])
    view = base(4, True, 16)(made, torch.arange(500), **AT)
    zero = view == 0
    assert torch.equal(view[~zero], shown.expand_as(view)[~zero])
    assert (zero[:, 0] == zero[:, 1]).all() and (zero[:, 0] == zero[:, 2]).all()
    assert 0.15 < zero.double().mean() < 0.5


def test_cutout_squares_are_centred_anywhere_and_clipped():
    count, size, side = 40_000, 8, 4
    view = base(cutout=side, channels=1)(images(count, 1, size, size) + 1, torch.arange(count), **AT)
    cut = (view == 0)[:, 0]
    rows, columns = cut.any(2).double(), cut.any(1).double()
    assert torch.equal(cut.double(), rows[:, :, None] * columns[:, None])
    # A centre c cuts places c - 2 … c + 1: one code per centre, so counting codes counts centres.
    places = torch.arange(size)
    spans = ((places[None] >= places[:, None] - 2) & (places[None] <= places[:, None] + 1)).double()
    for got in (rows, columns):
        centre = (got[:, None] == spans).all(2)
        assert (centre.sum(1) == 1).all()
        counts = centre.double().sum(0)
        assert ((counts - count / size) ** 2 / (count / size)).sum() < chi2.isf(1e-4, size - 1)


def test_seed_role_epoch_and_index_each_change_the_view():
    made, step = images(50, 3, 8, 8), base(2, True, 4)
    indices = torch.arange(50)
    one = step(made, indices, **AT)
    assert torch.equal(one, step(made, indices, **AT))
    for other in ({"seed": 6}, {"role": Role.TEACHER}, {"epoch": 4}):
        assert not torch.equal(one, step(made, indices, **(AT | other)))
    assert not torch.equal(one, step(made, indices + 1, **AT))


def test_the_result_may_be_saved_for_backward():
    view = base(2, True, 4)(images(4, 3, 8, 8), torch.arange(4), **AT)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (view * weight).sum().backward()
    assert torch.equal(weight.grad.flatten(), view.sum((0, 2, 3)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_on_cuda(photographs):
    indices = torch.arange(len(photographs))
    cpu = base(4, True, 16)(photographs, indices, **AT)
    assert torch.equal(cpu, base(4, True, 16)(photographs.cuda(), indices.cuda(), **AT).cpu())
