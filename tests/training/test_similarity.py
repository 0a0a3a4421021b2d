"""Linear CKA against a loop over images, its invariances, and on networks trained on real digits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from robust_helpers import Untouched, clean_views, digits, trained

from rolekd_ray.distill.capture import Capture
from rolekd_ray.errors import ConfigError
from rolekd_ray.models.zoo import build_network
from rolekd_ray.training import similarity
from rolekd_ray.training.similarity import layer_similarity, linear_cka


def cka_by_loop(one: np.ndarray, other: np.ndarray) -> float:
    """By cross-covariances: sums over pairs of features, image by image."""

    def centred(features):
        return [[v - math.fsum(c) / len(c) for v, c in zip(row, columns)] for row in features]

    def norm(first, second):
        return math.fsum(
            math.fsum(f[p] * s[q] for f, s in zip(first, second)) ** 2
            for p in range(len(first[0]))
            for q in range(len(second[0]))
        )

    columns = list(zip(*one))
    x = centred(one.tolist())
    columns = list(zip(*other))
    y = centred(other.tolist())
    return norm(x, y) / math.sqrt(norm(x, x) * norm(y, y))


@pytest.mark.parametrize(("images", "wide", "narrow"), [(2, 3, 1), (7, 5, 4), (12, 30, 3)])
def test_against_a_loop(images, wide, narrow):
    rng = np.random.default_rng(images)
    one, other = rng.normal(3, 1, (images, wide)), rng.normal(-1, 2, (images, narrow))
    found = linear_cka(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(cka_by_loop(one, other), rel=1e-10)


def test_by_hand():
    """The first feature tells two of four images apart, the second the other two: they share nothing."""
    one = torch.tensor([1.0, -1, 0, 0])[:, None]
    other = torch.tensor([0.0, 0, 1, -1])[:, None]
    assert linear_cka(one, other) == 0
    assert linear_cka(one, torch.cat([one, other], 1)) == pytest.approx(1 / math.sqrt(2))  # <K, K> / (|K| sqrt(2)|K|)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 12), st.integers(1, 20), st.floats(0.01, 100), st.floats(-100, 100))
def test_turning_scaling_and_shifting_change_nothing(seed, images, features, scale, shift):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(images, features)), rng.normal(size=(images, 4))
    turn = np.linalg.qr(rng.normal(size=(features, features)))[0]
    turned = torch.from_numpy(scale * one @ turn + shift)
    one, other = torch.from_numpy(one), torch.from_numpy(other)
    assert linear_cka(one, turned) == pytest.approx(1, abs=1e-9)
    found = linear_cka(one, other)
    assert linear_cka(turned, other) == pytest.approx(found, abs=1e-7) == pytest.approx(linear_cka(other, turned))
    assert 0 <= found <= 1 + 1e-12


def test_more_columns_than_are_taken_at_once_and_large_means():
    generator = torch.Generator().manual_seed(0)
    # Three directions of images, of which the two share one: random features of 5,000 would all be alike by chance
    signal, columns = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((6, 3), (3, 5000)))
    one, other = ((signal[:, part] @ columns[part]).view(6, 2, 50, 50) for part in ([0, 1], [1, 2]))
    expected = cka_by_gram(one.flatten(1).numpy(), other.flatten(1).numpy())
    assert 0.1 < expected < 0.9
    assert linear_cka(one, other) == pytest.approx(expected, rel=1e-12)
    assert linear_cka(one.float() + 1000, other.float()) == pytest.approx(expected, rel=1e-4)


def cka_by_gram(one: np.ndarray, other: np.ndarray) -> float:
    grams = [(features - features.mean(0)) @ (features - features.mean(0)).T for features in (one, other)]
    return (grams[0] * grams[1]).sum() / np.sqrt((grams[0] ** 2).sum() * (grams[1] ** 2).sum())


def test_constant_features_have_no_similarity():
    assert linear_cka(torch.ones(5, 3), torch.randn(5, 3)) is None


LAYERS = ("stage1", "stage2", "stage3")


def test_layers_of_trained_networks(monkeypatch):
    one, other, images = trained(0), trained(1), clean_views().clean(digits()[0])
    pairs = [*((name, name) for name in LAYERS), ("stage1", "stage3"), ("classifier.input", "stage3")]
    monkeypatch.setattr(similarity, "BATCH", 64)
    with Untouched(one, other):
        found = layer_similarity(one, other, images, pairs)
        assert layer_similarity(one, other, images, pairs) == found
        assert layer_similarity(one, one, images, pairs)[:3] == pytest.approx([1, 1, 1], abs=1e-9)
    assert all(0 < value < 1 for value in found)
    assert found[1] > found[3], "the same stage of another network is no more alike than a far one"
    fresh = build_network("resnet8", num_classes=10, channels=1, seed=9).eval()
    assert layer_similarity(one, fresh, images, pairs[2:3])[0] < found[2], "learning the same brings no likeness"
    for network in (one, other):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    features = []
    for network, layer in zip((one, other), pairs[4]):
        with Capture(network, [layer]) as capture, torch.no_grad():
            network(images)
        features.append(capture.features[layer])
    assert linear_cka(*features) == pytest.approx(found[4], abs=1e-6)


def test_unknown_layers():
    network = trained()
    with pytest.raises(ConfigError, match=r"unknown layer 'stage9'.*Did you mean 'stage"):
        layer_similarity(network, network, torch.zeros(2, 1, 8, 8), [("stage9", "stage1")])
