"""MagSim and AngSim: closed forms of linear networks, a loop, and networks trained on real digits."""

import math

import pytest
import torch
from robust_helpers import MEAN, STD, Untouched, digits, trained
from torch import nn

from rolekd_ray.distill.attacks import boundary_attack
from rolekd_ray.training import boundaries
from rolekd_ray.training.boundaries import boundary_similarity
from rolekd_ray.training.robustness import OnPixels


class Linear(nn.Module):
    """Two classes; class 0 wins where normal · (x - 1/2) + gap is above 0."""

    def __init__(self, normal: list[float], gap: float):
        super().__init__()
        self.normal, self.gap = torch.tensor(normal, dtype=torch.float64), gap
        self.eval()

    def forward(self, images):
        score = (images.flatten(1).double() - 0.5) @ self.normal + self.gap
        return torch.stack([score, torch.zeros_like(score)], 1)


HALF = torch.full((3, 1, 1, 2), 127.5).round().to(torch.uint8)  # 128, a hair above 1/2
HALF_OFF = 128 / 255 - 0.5
LABELS = torch.zeros(3, dtype=torch.int64)


def way(network: Linear) -> float:
    """How far it moves along its normal until its gap is below 0; the steps shrink by 1 - 0.3 ‖w‖."""
    norm = network.normal.norm().item()
    left = gap = network.gap + HALF_OFF * network.normal.sum().item()
    while left >= 0:
        left -= 0.3 * norm * (left + 1e-4)
    return (gap - left) / norm


@pytest.mark.parametrize("degrees", [0, 60, 90, 180])
def test_two_linear_networks(degrees):
    """The ways lie along the normals: AngSim is the cosine of the angle between them, MagSim the ratio of lengths."""
    turned = [4 * math.cos(math.radians(degrees)), 4 * math.sin(math.radians(degrees))]
    one, other = Linear([4, 0], 0.4), Linear(turned, 0.8)
    found = boundary_similarity(one, other, HALF, LABELS)
    lengths = sorted([way(one), way(other)])
    assert found.angle == pytest.approx(math.cos(math.radians(degrees)), abs=1e-5)
    assert found.magnitude == pytest.approx(lengths[0] / lengths[1], rel=1e-4)
    assert found.pairs == 3 and 0.1 < found.magnitude < 0.9


def test_what_does_not_count():
    right, wrong, flat = Linear([4, 0], 0.4), Linear([4, 0], -0.4), Linear([1e-3, 0], 0.4)
    assert boundary_similarity(right, right, HALF, LABELS).pairs == 3
    for other in (wrong, flat):  # not right from the start; never over the edge
        for pair in ((right, other), (other, right)):
            found = boundary_similarity(*pair, HALF, LABELS)
            assert (found.magnitude, found.angle, found.pairs) == (None, None, 0)


class Renamed(nn.Module):
    """A network that calls every class by the next one's name."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, images):
        return self.network(images).roll(1, dims=1)


def test_images_on_which_one_network_is_wrong_do_not_count():
    network, (images, labels) = OnPixels(trained(), MEAN, STD), (part[:2] for part in digits())
    for pair in ((network, Renamed(network)), (Renamed(network), network)):
        assert boundary_similarity(*pair, images, labels).pairs == 0
    assert boundary_similarity(Renamed(network), Renamed(network), images, (labels + 1) % 10).pairs > 4


def test_equal_networks_have_equal_boundaries():
    network, (images, labels) = OnPixels(trained(), MEAN, STD), digits()
    found = boundary_similarity(network, network, images[:8], labels[:8])
    assert boundary_similarity(network, network, images[:8], labels[:8]) == found
    assert found.magnitude == pytest.approx(1, abs=1e-9) and found.angle == pytest.approx(1, abs=1e-9)
    assert found.pairs > 30


def test_against_a_loop_on_trained_networks(monkeypatch):
    one, other = (OnPixels(trained(seed), MEAN, STD) for seed in (0, 1))
    images, labels = (part[:8] for part in digits())
    with Untouched(one, other):
        found = boundary_similarity(one, other, images, labels)
    monkeypatch.setattr(boundaries, "BATCH", 5)
    parts = boundary_similarity(one, other, images, labels)
    assert parts.pairs == found.pairs and parts.angle == pytest.approx(found.angle, abs=1e-3)
    magnitudes, angles = [], []
    for target in range(10):
        ways = []
        for network in (one, other):
            moved, _ = boundary_attack(network, images / 255, torch.full((8,), target))
            with torch.no_grad():
                before, after = network(images / 255).argmax(1), network(moved).argmax(1)
            ways.append((moved - images / 255, (before == labels) & (after != labels)))
        for n in range(8):
            (first, ok), (second, fine) = ((way[n].flatten().tolist(), over[n]) for way, over in ways)
            if labels[n] != target and ok and fine:
                lengths = [math.sqrt(math.fsum(v * v for v in moved)) for moved in (first, second)]
                magnitudes.append(min(lengths) / max(lengths))
                angles.append(math.fsum(a * b for a, b in zip(first, second)) / (lengths[0] * lengths[1]))
    assert found.pairs == len(angles) > 30
    assert found.magnitude == pytest.approx(math.fsum(magnitudes) / len(magnitudes), abs=1e-3)
    assert found.angle == pytest.approx(math.fsum(angles) / len(angles), abs=1e-3)
    assert 0.1 < found.magnitude < 0.95 and 0 < found.angle < 0.9, "says nothing"
