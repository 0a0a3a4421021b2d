"""Accuracy under attack and transferability: by hand, against a loop, and on networks trained on real digits."""

import pytest
import torch
from robust_helpers import MEAN, STD, Untouched, clean_views, digits, trained
from torch import nn

from rolekd_ray.distill.attacks import pgd
from rolekd_ray.training import robustness
from rolekd_ray.training.robustness import STUDY, OnPixels, Pgd, robust_accuracy, transferability

HARD, MILD = Pgd(0.3, 0.05, 5), Pgd(0.05, 0.01, 5)


def on_pixels(seed: int = 0) -> OnPixels:
    return OnPixels(trained(seed), MEAN, STD)


def first_answers(network, images) -> list[int]:
    with torch.no_grad():
        return [int(network(image[None])[0].argmax()) for image in images]


def test_on_pixels_is_the_network_with_its_normalisation():
    images = digits()[0][:20]
    network = trained()
    with torch.no_grad():
        assert torch.allclose(on_pixels()(images / 255), network(clean_views().clean(images)), atol=1e-5)
    assert not OnPixels(network.train(), MEAN, STD).network.training


class Threshold(nn.Module):
    """Says class 1 where the mean is above a threshold; by how much is the logit."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold
        self.eval()

    def forward(self, images):
        gap = 100 * (images.flatten(1).mean(1) - self.threshold)
        return torch.stack([-gap, gap], 1)


# Means of 100, 120, 140, 160 and 200 grey levels. PGD moves every pixel by epsilon, here 20 levels, the wrong way.
GREY = torch.tensor([100, 120, 140, 160, 200], dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 4, 4).contiguous()
TWENTY = Pgd(20 / 255, 5 / 255, 20)


def test_robust_accuracy_by_hand():
    """Threshold 130: labels 0 0 1 1 1 are right; 120 and 140 cross it, 100, 160 and 200 do not."""
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert robust_accuracy(Threshold(130 / 255), GREY, labels, seed=0, attack=TWENTY) == 3 / 5
    # An image that is wrong from the start stays wrong, though an attack on its true class moves it over.
    labels = torch.tensor([0, 1, 1, 1, 1])
    assert robust_accuracy(Threshold(130 / 255), GREY, labels, seed=0, attack=TWENTY) == 3 / 5


def test_an_image_that_only_its_random_start_makes_right_does_not_count():
    images = torch.full((50, 1, 1, 1), 129, dtype=torch.uint8)
    noise = Pgd(20 / 255, 0, 0)
    assert robust_accuracy(Threshold(130 / 255), images, torch.ones(50, dtype=torch.int64), seed=0, attack=noise) == 0
    found = robust_accuracy(Threshold(130 / 255), images, torch.zeros(50, dtype=torch.int64), seed=0, attack=noise)
    assert 0.3 < found < 0.8, "the start moves nothing over"


def test_transferability_by_hand():
    """Attacks on threshold 130 that count are those of 120 (up to 140) and 140 (down to 120)."""
    labels = torch.tensor([0, 0, 1, 1, 1])
    source = Threshold(130 / 255)

    def against(threshold: float):
        found = transferability(source, Threshold(threshold / 255), GREY, labels, seed=0, attack=TWENTY)
        return found.share, found.attacks

    assert against(130) == (1, 2)
    assert against(125) == (1, 2)  # 140 and 120 are on the wrong sides of 125
    assert against(136) == (1, 2)
    assert against(139) == (1, 2)
    # Threshold 150: the target is wrong on 140 when clean, so only 120 counts, and 140 does not fool it
    assert against(150) == (0, 1)
    assert against(110) == (0, 1)  # wrong on 120 when clean; 140 moved to 120 stays above 110
    mild = Pgd(1 / 255, 1 / 255, 2)
    found = transferability(source, source, GREY, labels, seed=0, attack=mild)
    assert (found.share, found.attacks) == (None, 0)


def test_against_a_loop_on_trained_networks():
    source, target, (images, labels) = on_pixels(0), on_pixels(1), digits()
    images, labels = images[:60], labels[:60]
    with Untouched(source, target):
        found = transferability(source, target, images, labels, seed=3, attack=HARD)
        accuracy = robust_accuracy(source, images, labels, seed=3, attack=HARD)
        key = robustness.stream_key(3, "pgd") % 2**63
        generator = torch.Generator().manual_seed(key)
        attacked = pgd(
            source, images / 255, labels, epsilon=0.3, step=0.05, steps=5, generator=generator
        )  # one batch, as 60 < BATCH
    rows = [first_answers(network, x) for network in (source, target) for x in (images / 255, attacked)]
    attacks = fooled = right = 0
    for source_clean, source_attacked, target_clean, target_attacked, label in zip(*rows, labels.tolist()):
        right += source_clean == label and source_attacked == label
        if source_clean == label and target_clean == label and source_attacked != label:
            attacks += 1
            fooled += target_attacked != label
    assert (found.attacks, found.share) == (attacks, fooled / attacks)
    assert accuracy == right / 60
    assert attacks > 10 and 0 < fooled < attacks, "says nothing"


def test_a_networks_own_attacks_all_transfer_to_itself():
    network, (images, labels) = on_pixels(), digits()
    found = transferability(network, network, images, labels, seed=0, attack=HARD)
    assert found.share == 1 and found.attacks > 20


def test_stronger_attacks_leave_less_and_repeat_bit_for_bit():
    network, (images, labels) = on_pixels(), digits()
    images, labels = images[:120], labels[:120]  # more than a batch
    answers = torch.tensor(first_answers(network, images / 255))
    clean = (answers == labels).double().mean().item()
    none, mild, hard = (
        robust_accuracy(network, images, labels, seed=0, attack=attack) for attack in (Pgd(0, 0, 1), MILD, HARD)
    )
    assert clean > 0.8 and clean == pytest.approx(none)
    assert clean > mild > hard
    assert robust_accuracy(network, images, labels, seed=0, attack=HARD) == hard


def test_the_strengths_of_the_study():
    assert (STUDY.epsilon, STUDY.step, STUDY.steps) == (0.031, 0.003, 20)
    assert (robustness.ROBUST.epsilon, robustness.ROBUST.steps) == (8 / 255, 20)
