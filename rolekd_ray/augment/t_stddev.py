"""T. stddev: how a teacher's mean answer varies from batch to batch; lower where views teach more, a study says."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import stdev
from typing import Any

from rolekd_ray.errors import ConfigError

_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TStddev:
    """The T. stddev of one augmentation, and all that another result must share to be compared with it.

    It is no fitness: images that are destroyed, to which the teacher answers always the same, halve it.

    Attributes:
        score: mean over classes of the standard deviation over groups of the teacher's mean probability, in [0, 0.71].
        groups: whole groups that were counted; those of an incomplete one are not.
        rows_per_group: answers averaged in a full group, of all branches together.
        group_steps: steps per group.
        classes: K.
        branches: blocks of answers per step. 2: to x (crop and flip alone) and to x'; 1: to one view.
        images: how many an epoch shuffles; None: they are drawn anew each time.
        teacher: who it is, for messages and for refusing to compare.
        seed: of the bootstrap.
        entropy: mean entropy of the answers to the last branch (x'), in nats.
        confidence: mean of the largest probability of those answers, in [1/K, 1].
        replicates: the score of each bootstrap replicate of the groups; of equal seed and groups, the same resampling.
    """

    score: float
    groups: int
    rows_per_group: int
    group_steps: int
    classes: int
    branches: int
    images: int | None
    teacher: str
    seed: int
    entropy: float
    confidence: float
    replicates: tuple[float, ...]

    @property
    def one_hot_level(self) -> float:
        """What a teacher would get that is sure of its training images, in balanced classes, without augmentation.

        sqrt(p (1 - p) / n · (N - n) / (N - 1)): the noise of class counts. p = 1/K; n, rows of one branch, for x'
        repeats x's images; the last factor, 1 if `images` is None, as an epoch draws without putting back.

        Source: our analysis. For the published CIFAR-100 runs it gives 0.00554 (0.00556 without the last factor); their
        measured values, decoded from the authors' figures, are up to 0.00553.
        """
        rows = self.rows_per_group / self.branches
        chance = 1 / self.classes
        left = 1.0 if self.images is None else max(0.0, self.images - rows) / max(1, self.images - 1)
        return sqrt(chance * (1 - chance) / rows * left)

    @property
    def interval(self) -> Interval:
        """The score and its 95 % interval: 1.96 standard errors, from a bootstrap over groups."""
        return _interval(self.score, self.replicates)

    def ratio_to(self, identity: "TStddev") -> Interval:
        """Return score / identity's score with its 95 % interval.

        The bootstrap is paired: where both saw the same images in the same order, as `rolekd diagnose` shows them,
        what is common to both groups cancels and the interval is far narrower than those of the scores.

        Raises:
            ConfigError: the two cannot be compared, or the identity's score is 0.
        """
        check_comparable({"this": self, "the identity": identity})
        if identity.score <= 0:
            raise ConfigError(f"T. stddev: identity: got {identity.score}; expected above 0: its teacher never varies")
        ratios = tuple(one / other for one, other in zip(self.replicates, identity.replicates) if other > 0)
        return _interval(self.score / identity.score, ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: all attributes but the replicates, the interval and the one-hot level."""
        plain = {name: value for name, value in asdict(self).items() if name != "replicates"}
        return plain | {"interval": asdict(self.interval), "one_hot_level": self.one_hot_level}


def check_comparable(results: Mapping[str, TStddev]) -> None:
    """Check that results differ in nothing but the augmentation: its level depends on all the rest.

    Raises:
        ConfigError: with every difference between the first result and another, naming both.
    """
    names = ("teacher", "classes", "branches", "group_steps", "rows_per_group", "images", "groups", "seed")
    (first, reference), *others = results.items()
    problems = [
        f"T. stddev: cannot compare {first!r} and {other!r}: {name.replace('_', ' ')}: got {getattr(reference, name)!r}"
        f" and {getattr(result, name)!r}; expected the same"
        for other, result in others
        for name in names
        if getattr(reference, name) != getattr(result, name)
    ]
    if problems:
        raise ConfigError(*problems)


def _interval(value: float, replicates: tuple[float, ...]) -> Interval:
    error = stdev(replicates) if len(replicates) > 1 else 0.0
    return Interval(value, max(0.0, value - _NORMAL_95 * error), value + _NORMAL_95 * error)
