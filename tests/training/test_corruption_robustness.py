"""Accuracy on corrupted digits falls with severity; published sets are read as they lie."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from robust_helpers import Untouched, clean_views, digits, trained

from rolekd_ray.augment.corruptions import STRENGTHS, corrupt
from rolekd_ray.config import BaseAugmentationSettings
from rolekd_ray.data.corrupted import CorruptedSets
from rolekd_ray.data.sources import load_image_set
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.training.corruption_robustness import corrupted_accuracies, mean_accuracy, published_accuracies
from rolekd_ray.training.evaluation import predict, score
from rolekd_ray.training.robustness import OnPixels, Pgd, robust_accuracy
from rolekd_ray.training.views import Views


def accuracy(network, images, labels) -> float:
    right = 0
    for image, label in zip(images, labels.tolist()):
        with torch.no_grad():
            right += int(network(clean_views().clean(image[None]))[0].argmax()) == label
    return right / len(labels)


def test_on_a_network_trained_on_digits():
    network, (images, labels), views = trained(), digits(), clean_views()
    with Untouched(network):
        found = corrupted_accuracies(network, images, labels, views, seed=0)
        assert corrupted_accuracies(network, images, labels, views, seed=0) == found
    assert list(found) == list(STRENGTHS) and all(len(row) == 5 for row in found.values())
    clean = accuracy(network, images, labels)
    assert clean > 0.85
    for name, row in found.items():
        assert row[4] < clean, name
        assert all(later <= earlier + 0.05 for earlier, later in zip([clean, *row], row)), (name, row)
    by_severity = [sum(column) for column in zip(*found.values())]
    assert all(later < earlier for earlier, later in pairwise(by_severity))
    assert mean_accuracy(found) == pytest.approx(sum(by_severity) / 35)
    again = corrupt(images, "shift", 3, seed=0, fill=views.fill)
    assert found["shift"][2] == pytest.approx(accuracy(network, again, labels))


def test_published_sets():
    """Severity s of this one shows only the first 5 - s images as they are, all others black."""
    network, (images, labels), views = trained(), digits(), clean_views()
    images, labels = images[:5], labels[:5]
    pictures = []
    for severity in range(1, 6):
        shown = images.clone()
        shown[5 - severity :] = 0
        pictures.append(shown.permute(0, 2, 3, 1).numpy())
    sets = CorruptedSets({"dark": np.concatenate(pictures)}, np.tile(labels.numpy(), 5))
    expected = [accuracy(network, torch.from_numpy(p).permute(0, 3, 1, 2), labels) for p in pictures]
    assert published_accuracies(network, sets, views, limit=9) == {"dark": pytest.approx(expected)}
    assert expected[0] > expected[4]
    first = [accuracy(network, torch.from_numpy(p[:2]).permute(0, 3, 1, 2), labels[:2]) for p in pictures]
    assert published_accuracies(network, sets, views, limit=2) == {"dark": pytest.approx(first)}


@pytest.mark.slow
def test_photographs(shared_data):
    """Attacks and corruptions cost a network accuracy on real photographs, the more the stronger they are."""
    train, test = (load_image_set("parquet", shared_data / "cifar10", split=split) for split in ("train", "test"))
    mean, std = train.statistics(torch.arange(2000))
    views = Views(
        BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0),
        SearchSpace("none", ()),
        mean,
        std,
        seed=0,
    )
    network = build_network("resnet8", num_classes=10, channels=3, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    for part in torch.arange(2000).repeat(4).split(50):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(views.clean(train.images[part])), train.labels[part])
        loss.backward()
        optimizer.step()
    network.eval()
    images, labels = test.images[:500], test.labels[:500]
    found = corrupted_accuracies(network, images, labels, views, seed=0)
    clean = score(predict(network, images, views, dtype=torch.float32), labels).accuracy
    assert clean > 0.25, "too little learnt"
    by_severity = [sum(column) / 7 for column in zip(*found.values())]
    assert all(later < earlier for earlier, later in pairwise([clean, *by_severity])), by_severity
    pixels = OnPixels(network, mean, std)
    attacked = [
        robust_accuracy(pixels, images[:100], labels[:100], seed=0, attack=Pgd(epsilon / 255, epsilon / 1000, 10))
        for epsilon in (0.5, 2, 8)
    ]
    assert clean > attacked[0] > attacked[1] > attacked[2]
