import json
from math import inf, log, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import tiny_settings

from rolekd_ray.config import BaseAugmentationSettings
from rolekd_ray.errors import TrainingError
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.training import evaluation
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.evaluation import agreement, check_finite, evaluate, predict, score
from rolekd_ray.training.views import Views

NOTHING = BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0)


def reference(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, mean negative log-likelihood and expected calibration error, image by image in float64."""
    right, loss = 0, 0.0
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(logits.astype(np.float64), labels):
        chances = np.exp(row - row.max())
        chances /= chances.sum()
        guess = max(range(len(row)), key=lambda k: (row[k], -k))
        right += guess == label
        loss -= float(row[label] - row.max() - np.log(np.exp(row - row.max()).sum()))
        place = min(int(chances[guess] * 15), 14)
        bins.setdefault(place, []).append((chances[guess], guess == label))
    error = sum(
        len(held) / len(labels) * abs(np.mean([r for _, r in held]) - np.mean([c for c, _ in held]))
        for held in bins.values()
    )
    return right / len(labels), loss / len(labels), float(error)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 300), classes=st.integers(2, 20), scale=st.floats(0.1, 20))
def test_metrics_against_a_loop(seed, images, classes, scale):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(images, classes)) * scale).astype(np.float32)
    labels = np.where(rng.random(images) < 0.5, logits.argmax(1), rng.integers(classes, size=images))
    found = score(torch.from_numpy(logits), torch.from_numpy(labels))
    accuracy, loss, error = reference(logits, labels)
    assert found.images == images
    assert found.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert found.loss == pytest.approx(loss, rel=1e-5, abs=1e-6)
    # a confidence within rounding of a bin's edge may fall to either side: that moves at most its own share
    assert found.calibration_error == pytest.approx(error, abs=1e-5) or near_an_edge(logits)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 60), classes=st.integers(2, 12), scale=st.floats(0.1, 20))
def test_ranks_entropy_and_classes_against_a_loop(seed, images, classes, scale):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(images, classes)) * scale).astype(np.float32)
    labels = rng.integers(classes, size=images)
    entropy, among, by_class = 0.0, 0, {}
    for row, label in zip(logits.astype(np.float64), labels):
        chances = np.exp(row - row.max())
        chances /= chances.sum()
        entropy -= sum(p * log(p) for p in chances if p > 0)
        among += sum(other > row[label] for other in row) < 5
        by_class.setdefault(label, []).append(row.argmax() == label)
    found = score(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found.entropy == pytest.approx(entropy / images, rel=1e-4, abs=1e-5)
    assert 0 <= found.entropy <= log(classes) + 1e-5
    assert found.top5_accuracy == (pytest.approx(among / images, abs=1e-6) if classes > 5 else None)
    expected = [float(np.mean(by_class[k])) if k in by_class else None for k in range(classes)]
    assert found.class_accuracy == [None if value is None else pytest.approx(value) for value in expected]
    assert found.lowest_class_accuracy == pytest.approx(min(value for value in expected if value is not None))


def test_metrics_as_plain_data():
    logits, labels = torch.eye(7), torch.tensor([0, 1, 2, 3, 4, 4, 4])
    found = score(logits, labels).to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["class_accuracy"] == [1, 1, 1, 1, pytest.approx(1 / 3), None, None]
    assert found["lowest_class_accuracy"] == pytest.approx(1 / 3) and found["top5_accuracy"] == 1
    few = score(logits[:5, :5], labels[:5]).to_dict()
    assert "top5_accuracy" not in few and few.keys() | {"top5_accuracy"} == found.keys()


def test_entropy_of_extremes():
    labels = torch.zeros(3, dtype=torch.int64)
    assert score(torch.zeros(3, 8), labels).entropy == pytest.approx(log(8), rel=1e-6)
    sure = torch.tensor([[200.0, 0, -200]]).repeat(3, 1)  # chances of exactly 0
    assert score(sure, labels).entropy == 0


def near_an_edge(logits: np.ndarray) -> bool:
    chances = torch.from_numpy(logits).double().softmax(1).max(1).values * 15
    return bool(((chances - chances.round()).abs() < 1e-4).any())


def test_calibration_of_extremes():
    labels = torch.zeros(10, dtype=torch.int64)
    sure = torch.tensor([[50.0, 0.0]]).repeat(10, 1)
    assert score(sure, labels).calibration_error == pytest.approx(0, abs=1e-6)
    assert score(sure, labels + 1).calibration_error == pytest.approx(1, abs=1e-6)
    half = (torch.arange(10) % 2).long()
    assert score(sure, half).calibration_error == pytest.approx(0.5, abs=1e-6)
    unsure = torch.zeros(10, 2)  # confidence 1/2, right half of the time
    assert score(unsure, half).calibration_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [nan, inf])
def test_broken_logits_give_numbers_that_are_seen_to_be_broken(bad):
    logits = torch.zeros(4, 3)
    logits[1] = bad
    found = score(logits, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TrainingError, match="003-0001: epoch 4: loss is not finite: loss nan"):
        check_finite(found.to_dict(), "003-0001: epoch 4")


def test_finite_values_pass():
    check_finite({"loss": 0.0, "accuracy": 1, "calibration_error": 1e30}, "here")


def test_agreement_is_the_share_of_equal_answers():
    one = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    other = torch.tensor([[9.0, 1], [9, 1], [0, 1], [3, 2]])
    assert agreement(one, other) == agreement(other, one) == 0.75
    assert agreement(one, one) == 1


@pytest.fixture(scope="module")
def digits():
    return open_training_data(tiny_settings().data, train=60)


@pytest.fixture
def network():
    made = build_network("resnet8", num_classes=10, channels=1, seed=0).to(memory_format=torch.channels_last)
    made.train()(torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return made


def views(digits) -> Views:
    return Views(NOTHING, SearchSpace("none", ()), *digits.statistics, seed=0)


def test_predictions_do_not_depend_on_the_batch(digits, network, monkeypatch):
    images = digits.image_set.images[:130]
    whole = predict(network, images, views(digits), dtype=torch.float32)
    assert whole.shape == (130, 10) and whole.dtype == torch.float32
    for size in (1, 7, 129):
        monkeypatch.setattr(evaluation, "BATCH", size)
        assert torch.allclose(predict(network, images, views(digits), dtype=torch.float32), whole, rtol=0, atol=1e-5)


def test_predictions_are_the_networks_answers_to_clean_images(digits, network):
    images = digits.image_set.images[:50]
    mean, std = (value.view(1, -1, 1, 1) for value in digits.statistics)
    found = predict(network, images, views(digits), dtype=torch.float32)
    with torch.no_grad():
        expected = network.eval()((images / 255 - mean) / std)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_buffers_come_back_untouched(digits, network, training):
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, digits.image_set.images[:20], digits.image_set.labels[:20], views(digits), dtype=torch.float32)
    assert network.training is training and all(module.training is training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in network.parameters())


def test_bfloat16_answers_are_close_and_come_as_float32(digits, network):
    images = digits.image_set.images[:50]
    exact = predict(network, images, views(digits), dtype=torch.float32)
    close = predict(network, images, views(digits), dtype=torch.bfloat16)
    assert close.dtype == torch.float32 and not torch.equal(close, exact)
    assert (close - exact).abs().max() < 0.05 * exact.abs().max()
