"""Measuring T. stddev: a teacher's answers in, step by step, and their deviation out."""

from math import e, factorial, isfinite

import torch
from torch import Tensor

from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.augment.t_stddev import TStddev
from rolekd_ray.errors import ConfigError, TrainingError

GROUP_STEPS = 5
"""Steps that are averaged into one vector, as published: 10 blocks of two branches, 5 of one."""
REPLICATES = 200
"""Bootstrap replicates: a standard error from them is itself known to 5 %."""
_MOST_TIMES = 12  # a group counts oftener with a chance below 2^-24, the grid of the uniforms


class TStddevMeter:
    """Takes a teacher's answers step by step, in memory that does not grow with the number of steps.

    Source: the code of the authors of arXiv 2012.02909 (github.com/MingSun-Tse/Good-DA-in-KD): probabilities at
    temperature 1; every `GROUP_STEPS` steps the rows of all blocks are averaged into a vector m of K; the score is
    mean_c std_k(m_k[c]), unbiased. Groups run on from one epoch to the next; the last incomplete one is left out.
    Ours: one pass (Welford) in float64, for the code keeps all m; the bootstrap, by a Poisson(1) weight per group and
    replicate, a function of (seed, group, replicate) alone; entropy over x' only.

    Args:
        classes: K.
        branches: blocks per step, 2 or 1.
        images: how many different images an epoch has; None: drawn with putting back.
        teacher: who answers; results of others are not compared.
        seed: of the bootstrap.
    """

    def __init__(self, classes: int, *, teacher: str, branches: int = 2, images: int | None = None, seed: int = 0):
        assert classes > 1 and branches in (1, 2), (classes, branches)
        self.classes, self.branches, self.images, self.teacher, self.seed = classes, branches, images, teacher, seed
        self._steps = self._rows = self._largest = self._answers = 0
        self._sum = self._spread = torch.zeros(0)
        # Replicate 0 counts every group once: the score itself
        self._weights = torch.zeros(REPLICATES + 1, 1, dtype=torch.float64)
        self._means = torch.zeros(REPLICATES + 1, classes, dtype=torch.float64)
        self._squares = torch.zeros_like(self._means)
        self._groups = 0
        chances = torch.tensor([1 / factorial(times) / e for times in range(_MOST_TIMES)], dtype=torch.float64)
        self._edges = chances.cumsum(0).float()

    @torch.no_grad()
    def add(self, *logits: Tensor) -> None:
        """Take one step's logits, one block (B, K) per branch, x before x'; blocks may differ in B."""
        assert len(logits) == self.branches and all(block.shape[1:] == (self.classes,) for block in logits)
        chances = [block.float().softmax(1) for block in logits]
        summed = torch.stack([block.sum(0, dtype=torch.float64) for block in chances]).sum(0)
        self._sum = self._sum + summed if self._steps else summed
        augmented = chances[-1]
        spread = torch.stack([torch.special.entr(augmented).sum(dtype=torch.float64), augmented.amax(1).double().sum()])
        self._spread = self._spread + spread if self._answers else spread
        self._answers += len(augmented)
        self._rows += sum(map(len, chances))
        self._steps += 1
        if self._steps == GROUP_STEPS:
            self._close_group()

    def result(self) -> TStddev:
        """Return what was measured so far; more may be added afterwards.

        Raises:
            ConfigError: fewer than two whole groups.
            TrainingError: the teacher's answers are not finite.
        """
        if self._groups < 2:
            raise ConfigError(
                f"T. stddev: too few images, got {self._groups} whole groups of {GROUP_STEPS} batches; expected at "
                "least 2: more images, more epochs or smaller batches"
            )
        entropy, confidence = (self._spread / self._answers).tolist()
        counted = self._weights[:, 0] > 1  # a replicate of one group, possible where there are few, has no deviation
        weights, squares = self._weights[counted], self._squares[counted]
        squares = squares.clamp(min=0)  # rounding may leave less, where a replicate is one group several times
        score, *replicates = (squares / (weights - 1)).sqrt().mean(1).tolist()
        if not isfinite(score + entropy):
            raise TrainingError(f"T. stddev: answers of {self.teacher} are not finite, got {score}")
        return TStddev(
            score=score,
            groups=self._groups,
            rows_per_group=self._largest,
            group_steps=GROUP_STEPS,
            classes=self.classes,
            branches=self.branches,
            images=self.images,
            teacher=self.teacher,
            seed=self.seed,
            entropy=entropy,
            confidence=confidence,
            replicates=tuple(replicates),
        )

    def _close_group(self) -> None:
        """Count the group's mean vector, in each replicate as often as its weight says."""
        vector = (self._sum / self._rows).cpu()
        draws = uniforms(stream_key(self.seed, "bootstrap"), torch.tensor([self._groups]), REPLICATES)[0]
        times = torch.cat([torch.ones(1), torch.bucketize(draws, self._edges, right=True)]).double()[:, None]
        self._weights += times
        away = vector - self._means
        self._means += away * times / self._weights.clamp(min=1)
        self._squares += times * away * (vector - self._means)
        self._groups += 1
        self._largest = max(self._largest, self._rows)
        self._steps = self._rows = 0
