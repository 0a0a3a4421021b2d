import numpy as np
import pytest
import torch
from training_helpers import tiny_settings

from rolekd_ray.errors import DataError
from rolekd_ray.training import data as module
from rolekd_ray.training.data import open_images, open_training_data

SETTINGS = tiny_settings().data


def test_training_and_validation_are_disjoint_and_the_test_file_stays_closed(monkeypatch):
    opened = []
    real = module.load_image_set
    monkeypatch.setattr(
        module, "load_image_set", lambda *a, split, **k: (opened.append(split), real(*a, split=split, **k))[1]
    )
    found = open_training_data(SETTINGS, train=60)
    assert (len(found.train), len(found.validation)) == (60, 60)
    assert not set(found.train.tolist()) & set(found.validation.tolist())
    assert opened == ["train"]
    open_images(SETTINGS, "test")
    assert opened == ["train", "test"]  # the spy does see it


def test_everybody_holds_out_the_same_images():
    searched, final = open_training_data(SETTINGS, train=60), open_training_data(SETTINGS, train=None)
    assert torch.equal(searched.validation, final.validation)
    assert len(final.train) == len(final.image_set) - 60
    assert set(searched.train.tolist()) < set(final.train.tolist())
    other = open_training_data(SETTINGS.model_copy(update={"split_seed": 1}), train=60)
    assert not torch.equal(other.validation, searched.validation)


def test_statistics_are_of_all_images_that_are_not_held_out():
    found = open_training_data(SETTINGS, train=60)
    kept = np.setdiff1d(np.arange(len(found.image_set)), found.validation.numpy())
    pixels = found.image_set.images.numpy()[kept].astype(np.float64) / 255
    mean, std = found.statistics
    assert mean.numpy() == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-6)
    assert std.numpy() == pytest.approx(pixels.std((0, 2, 3)), rel=1e-6)


def test_held_out_images_cannot_reach_the_statistics():
    found = open_training_data(SETTINGS, train=60)
    images = found.image_set.images.clone()
    images[found.validation] = 255
    spoilt = module.TrainingData(
        type(found.image_set)("x", images, found.image_set.labels, ("0",)), found.train, found.validation
    )
    assert all(map(torch.equal, spoilt.statistics, found.statistics))


def test_a_search_with_few_images_normalises_as_the_final_training_does():
    few, all_of_them = open_training_data(SETTINGS, train=20), open_training_data(SETTINGS, train=None)
    assert all(map(torch.equal, few.statistics, all_of_them.statistics))


def test_too_few_images():
    with pytest.raises(DataError, match="too few images"):
        open_training_data(SETTINGS, train=100_000)
