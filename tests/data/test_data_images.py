import math

import pytest
import torch

from rolekd_ray.data import ImageSet, load_image_set


def image_set(images: torch.Tensor) -> ImageSet:
    return ImageSet("some", images, torch.arange(len(images)) % 3, ("a", "b", "c"))


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_shape_properties():
    images = image_set(random_images(7, 3, 4, 5))
    assert (len(images), images.num_classes, images.channels, images.image_size) == (7, 3, 3, (4, 5))


def test_subset_follows_the_order_of_the_indices():
    images = image_set(random_images(7, 1, 2, 2))
    part = images.subset(torch.tensor([5, 0, 5]))
    assert part.labels.tolist() == [2, 0, 2]
    assert torch.equal(part.images, torch.stack([images.images[i] for i in (5, 0, 5)]))
    assert part.class_names == images.class_names


def test_statistics_equal_a_plain_loop():
    images = image_set(random_images(3, 3, 4, 5))
    mean, deviation = images.statistics()
    for channel in range(3):
        values = [value / 255 for value in images.images[:, channel].flatten().tolist()]
        expected = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((value - expected) ** 2 for value in values) / len(values))
        assert mean[channel].item() == pytest.approx(expected, abs=1e-7)
        assert deviation[channel].item() == pytest.approx(spread, abs=1e-7)
    assert mean.dtype == deviation.dtype == torch.float32


def test_statistics_do_not_depend_on_order_or_chunks():
    images = random_images(2500, 1, 3, 3)  # more than two chunks
    order = torch.randperm(2500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.cat(image_set(images).statistics()), torch.cat(image_set(images[order]).statistics()))
    reference = images.double() / 255
    mean, deviation = image_set(images).statistics()
    assert mean.item() == pytest.approx(reference.mean().item(), abs=1e-7)
    assert deviation.item() == pytest.approx(reference.std(correction=0).item(), abs=1e-7)


def test_constant_channel_can_be_normalised():
    mean, deviation = image_set(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)).statistics()
    assert (mean.item(), deviation.item()) == (pytest.approx(0.2), 1.0)


def test_statistics_of_real_photographs(cifar_slice):
    mean, deviation = load_image_set("parquet", cifar_slice, split="train").statistics()
    # The published values of the whole set; 300 images come close.
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.03)
    assert torch.allclose(deviation, torch.tensor([0.2470, 0.2435, 0.2616]), atol=0.02)
