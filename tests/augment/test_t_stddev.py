"""T. stddev of made answers: against loops in float64, against theory, and what may not be compared."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rolekd_ray.augment.t_stddev import Interval, TStddev
from rolekd_ray.augment.t_stddev_meter import GROUP_STEPS, REPLICATES, TStddevMeter
from rolekd_ray.errors import ConfigError, TrainingError

Step = tuple[Tensor, ...]


def measured(steps: Iterator[Step] | list[Step], classes: int, **options) -> TStddev:
    steps = list(steps)
    meter = TStddevMeter(classes, **{"teacher": "stub", "branches": len(steps[0]), **options})
    for step in steps:
        meter.add(*step)
    return meter.result()


def sure(labels: Tensor, classes: int) -> Tensor:
    """Logits of a teacher that is sure: a softmax of 1 and zeros."""
    return 1e4 * torch.nn.functional.one_hot(labels, classes)


def drawn(groups: int, batch: int, classes: int, seed: int = 0) -> Iterator[Tensor]:
    """Labels of all steps, drawn with putting back."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(groups * GROUP_STEPS):
        yield torch.randint(classes, (batch,), generator=generator)


def soft_steps(steps: int, classes: int, seed: int = 0, batch: int = 6) -> list[Step]:
    """Random logits in blocks of unequal size, as a picking agent and the end of an epoch give them."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(batch - step % 2, classes, generator=generator) * 3,
         torch.randn(batch, classes, generator=generator))
        for step in range(steps)
    ]  # fmt: skip


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def vectors(steps: list[Step]) -> list[list[float]]:
    """Each whole group's mean answer, by loops in float64."""
    found = []
    for start in range(0, len(steps) - GROUP_STEPS + 1, GROUP_STEPS):
        rows = [softmax(row) for step in steps[start : start + GROUP_STEPS] for block in step for row in block.tolist()]
        found.append([sum(column) / len(rows) for column in zip(*rows)])
    return found


def two_pass(steps: list[Step]) -> float:
    deviations = []
    for column in zip(*vectors(steps)):
        mean = sum(column) / len(column)
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in column) / (len(column) - 1)))
    return sum(deviations) / len(deviations)


def test_equals_two_passes_of_loops_and_leaves_out_the_last_incomplete_group():
    steps = soft_steps(38, 5)
    found = measured(steps, 5)
    assert found.score == pytest.approx(two_pass(steps), rel=1e-6)  # the softmax is float32
    assert found.groups == 7 and found.rows_per_group == 58
    assert found.score == measured(steps[:35], 5).score != measured(steps[:30], 5).score
    augmented = [softmax(row) for step in steps for row in step[1].tolist()]
    entropies = [-sum(chance * math.log(chance) for chance in row) for row in augmented]
    assert found.entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-6)
    assert found.confidence == pytest.approx(sum(map(max, augmented)) / len(augmented), rel=1e-6)


def test_one_branch_groups_five_blocks():
    steps = [(block,) for block, _ in soft_steps(20, 4)]
    found = measured(steps, 4)
    assert found.score == pytest.approx(two_pass(steps), rel=1e-6)
    assert (found.groups, found.branches) == (4, 1)


@pytest.mark.parametrize("batch", [16, 8])
def test_a_sure_teacher_gets_the_noise_of_class_counts(batch):
    """Invariant 12: within 3 % of sqrt(p (1 - p) / n); 600 groups of 100 classes leave a deviation of 0.3 %."""
    classes = 100
    found = measured(((sure(x, classes),) * 2 for x in drawn(600, batch, classes)), classes)
    theory = math.sqrt(0.01 * 0.99 / (GROUP_STEPS * batch))
    assert found.one_hot_level == pytest.approx(theory, rel=1e-12)
    assert found.score == pytest.approx(theory, rel=0.03)
    assert found.entropy == 0 and found.confidence == 1


def test_half_the_rows_times_the_root_of_two():
    large, small = (
        measured(((sure(x, 100),) * 2 for x in drawn(400, batch, 100, seed=batch)), 100).score for batch in (16, 8)
    )
    assert small / large == pytest.approx(math.sqrt(2), rel=0.03)


def test_an_epoch_draws_without_putting_back():
    """250 of 1,000 images a group: the plain formula is off by 15 %, the level by no more than chance."""
    labels = torch.arange(1000) % 10
    generator = torch.Generator().manual_seed(0)
    orders = [labels[torch.randperm(1000, generator=generator)] for _ in range(150)]
    found = measured(((sure(x, 10),) * 2 for order in orders for x in order.split(50)), 10, images=1000)
    assert found.groups == 600
    assert found.score == pytest.approx(found.one_hot_level, rel=0.03)
    assert found.score < 0.9 * replace(found, images=None).one_hot_level
    assert replace(found, images=100).one_hot_level == 0  # every group holds them all


def test_a_constant_teacher_never_varies():
    same = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    found = measured([(same, same)] * 50, 10)
    assert found.score == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError, match="its teacher never varies"):
        found.ratio_to(replace(found, score=0.0))


def test_constant_answers_to_the_augmented_view_alone_halve_it():
    """Why it is no fitness: this is what destroyed images do."""
    labels = list(drawn(60, 12, 10))
    identity = measured(((sure(x, 10), sure(x, 10)) for x in labels), 10)
    destroyed = measured(((sure(x, 10), torch.zeros(12, 10)) for x in labels), 10)
    assert destroyed.score == pytest.approx(identity.score / 2, rel=1e-9)
    ratio = destroyed.ratio_to(identity)
    assert ratio.value == pytest.approx(0.5, rel=1e-9) and ratio.high - ratio.low < 1e-9
    assert destroyed.confidence == pytest.approx(0.1) and destroyed.entropy == pytest.approx(math.log(10))


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_names_of_classes_and_order_of_rows_change_nothing(order, seed, scale):
    steps = [tuple(block * scale for block in step) for step in soft_steps(15, 5, seed)]
    found = measured(steps, 5)
    renamed = measured([tuple(block.flip(0)[:, list(order)] for block in step) for step in steps], 5)
    assert renamed.score == pytest.approx(found.score, rel=1e-6)
    assert renamed.replicates == pytest.approx(found.replicates, rel=1e-6, abs=1e-8)
    assert 0 < found.score <= math.sqrt(0.5)


# ---- the interval


def test_intervals_cover_the_truth():
    """100 measurements of a known deviation: about 95 intervals hold it; 40 groups each."""
    truth = math.sqrt(0.25 * 0.75 / (GROUP_STEPS * 6))
    found = [measured(((sure(x, 4),) for x in drawn(40, 6, 4, seed)), 4, seed=seed).interval for seed in range(100)]
    assert 88 <= sum(one.low <= truth <= one.high for one in found) <= 99
    assert np.mean([one.high - one.low for one in found]) < 0.3 * truth


def test_the_standard_error_is_that_of_resampled_groups():
    """An ordinary bootstrap in NumPy, of the two-pass vectors: other draws, the same spread."""
    steps = soft_steps(200, 4)
    found, means = measured(steps, 4), np.array(vectors(steps))
    rng = np.random.default_rng(0)
    other = [means[rng.integers(0, len(means), len(means))].std(0, ddof=1).mean() for _ in range(2000)]
    assert len(found.replicates) == REPLICATES
    assert np.std(found.replicates) == pytest.approx(np.std(other), rel=0.2)
    half = (found.interval.high - found.interval.low) / 2
    assert half == pytest.approx(1.96 * np.std(found.replicates, ddof=1), rel=1e-9)


def test_the_bootstrap_is_a_function_of_its_seed():
    steps = soft_steps(40, 4)
    found = measured(steps, 4, seed=3)
    assert found == measured(steps, 4, seed=3)
    other = measured(steps, 4, seed=4)
    assert other.score == found.score and other.replicates != found.replicates


def test_ratios_are_paired():
    steps = soft_steps(150, 4)
    identity = measured(((x, x) for x, _ in steps), 4)
    augmented = measured(((x, x * 0.8) for x, _ in steps), 4)
    ratio = augmented.ratio_to(identity)
    assert ratio.value == augmented.score / identity.score
    alone = augmented.interval
    assert ratio.high - ratio.low < 0.3 * (alone.high - alone.low) / identity.score
    assert identity.ratio_to(identity) == Interval(1.0, 1.0, 1.0)


# ---- what is refused, and extremes


@pytest.mark.parametrize(
    "change, words",
    [
        ({"teacher": "other"}, "teacher: got 'other' and 'stub'"),
        ({"classes": 7}, "classes: got 7 and 4"),
        ({"branches": 1}, "branches: got 1 and 2"),
        ({"group_steps": 10}, "group steps: got 10 and 5"),
        ({"rows_per_group": 640}, "rows per group: got 640 and 58"),
        ({"images": 50}, "images: got 50 and None"),
        ({"groups": 9}, "groups: got 9 and 4"),
        ({"seed": 9}, "seed: got 9 and 0"),
    ],
)
def test_what_differs_in_more_than_the_augmentation_is_not_compared(change, words):
    found = measured(soft_steps(20, 4), 4)
    with pytest.raises(ConfigError, match=words) as refused:
        replace(found, **change).ratio_to(found)
    assert "'this' and 'the identity'" in str(refused.value)
    with pytest.raises(ConfigError) as both:
        replace(found, groups=9, seed=9).ratio_to(found)
    assert len(both.value.problems) == 2


def test_too_few_groups():
    with pytest.raises(ConfigError, match="got 1 whole groups of 5 batches; expected at least 2"):
        measured(soft_steps(9, 4), 4)
    assert measured(soft_steps(10, 4), 4).score > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_that_underflow_have_finite_entropy(kind):
    x = (torch.eye(4) * 6e4).to(kind)
    found = measured([(x, x), (x[:2], x[:2])] * 10, 4)
    assert found.entropy == 0 and found.score > 0


def test_answers_that_are_not_finite_are_an_error():
    for step, branch in ((7, 0), (22, 1)):  # the second is in the group that is left out, but its entropy counts
        steps = soft_steps(23, 4)
        steps[step][branch][2, 1] = math.nan
        with pytest.raises(TrainingError, match="answers of stub are not finite"):
            measured(steps, 4)


def test_plain_data():
    found = measured(soft_steps(20, 4), 4)
    plain = found.to_dict()
    assert plain["score"] == found.score and plain["interval"]["low"] == found.interval.low
    assert plain["one_hot_level"] == found.one_hot_level and "replicates" not in plain
