"""Accuracy on corrupted digits falls with severity; published sets are read as they lie."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from robust_helpers import Untouched, clean_views, digits, trained

from rolekd_ray.augment.corruptions import STRENGTHS, corrupt
from rolekd_ray.data.corrupted import CorruptedSets
from rolekd_ray.training.corruption_robustness import corrupted_accuracies, mean_accuracy, published_accuracies


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
