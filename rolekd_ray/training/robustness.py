"""Robustness against attacks: accuracy under PGD, and which attacks on one network fool another.

All attack what a camera sees: pixels in [0, 1]. Images come as uint8.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.distill.attacks import pgd
from rolekd_ray.progress import advance

BATCH = 100


class OnPixels(nn.Module):
    """A network that takes images in [0, 1], normalisation included; always in evaluation mode, as the network is.

    Args:
        network: takes normalised images.
        mean: per channel, (C,) in [0, 1].
        std: per channel, (C,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.network((images - self.mean) / self.std)


@dataclass(frozen=True)
class Pgd:
    """Strength of an attack by projected gradient descent, in units of images in [0, 1]."""

    epsilon: float
    step: float
    steps: int = 20


ROBUST = Pgd(8 / 255, 2 / 255)
"""Madry et al.'s ε and step for CIFAR-10 (1706.06083), and 20 steps."""
STUDY = Pgd(0.031, 0.003)
"""What the study's code (2007.01922) attacks the teacher with."""


@dataclass(frozen=True)
class Transferability:
    """How many attacks on a source network fool a target.

    `share` is fooled / attacks; None where no attack counts. `attacks` is how many images count: both networks are
    right on them, and the attack fools the source.
    """

    share: float | None
    attacks: int


def robust_accuracy(network: nn.Module, images: Tensor, labels: Tensor, *, seed: int, attack: Pgd = ROBUST) -> float:
    """Return the fraction of images on which a network is right both as they are and attacked.

    Args:
        network: takes images in [0, 1].
        images: (N, C, H, W) uint8, N at least 1.
        labels: (N,) int64.
        seed: of the attack's start.
        attack: its strength.
    """
    right = 0
    for clean, attacked, truth in _attacked(network, images, labels, seed, attack):
        right += int((_right(network, clean, truth) & _right(network, attacked, truth)).sum())
    return right / len(labels)


def transferability(
    source: nn.Module, target: nn.Module, images: Tensor, labels: Tensor, *, seed: int, attack: Pgd = STUDY
) -> Transferability:
    """Return how many attacks on a source network fool a target, of those that count.

    Args:
        source: is attacked; takes images in [0, 1].
        target: is shown the attacked images.
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        seed: of the attack's start.
        attack: its strength.

    Source: the study's code (CURE, `transferability.py`), its "condition on correct".
    """
    attacks = fooled = 0
    for clean, attacked, truth in _attacked(source, images, labels, seed, attack):
        counts = _right(source, clean, truth) & _right(target, clean, truth) & ~_right(source, attacked, truth)
        attacks += int(counts.sum())
        fooled += int((counts & ~_right(target, attacked, truth)).sum())
    return Transferability(fooled / attacks if attacks else None, attacks)


def _attacked(
    network: nn.Module, images: Tensor, labels: Tensor, seed: int, attack: Pgd
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield clean images in [0, 1], attacked images and labels, batch by batch."""
    generator = torch.Generator().manual_seed(stream_key(seed, "pgd") % 2**63)
    for part, truth in zip(images.split(BATCH), labels.split(BATCH)):
        clean = part.float() / 255
        attacked = pgd(
            network,
            clean,
            truth,
            epsilon=attack.epsilon,
            step=attack.step,
            steps=attack.steps,
            generator=generator,
        )
        advance()
        yield clean, attacked, truth


def _right(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(1) == labels
