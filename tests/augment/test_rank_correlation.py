"""The correlation of T. stddev with students' losses: against loops, and against a published table."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch

from rolekd_ray.augment.rank_correlation import rank_correlation
from rolekd_ray.augment.t_stddev import TStddev
from rolekd_ray.augment.t_stddev_meter import TStddevMeter
from rolekd_ray.errors import ConfigError

# CIFAR-100, resnet56 to resnet20: T. stddev in 1e-3 and test loss, decoded from the scatter plot of arXiv 2012.02909
PUBLISHED = {
    "identity": (5.25, 1.1783), "flip": (5.23, 1.1668), "crop+flip": (5.12, 1.1763), "cutout": (4.98, 1.1687),
    "autoaugment": (4.90, 1.1478), "mixup": (4.72, 1.1621), "cutmix": (4.44, 1.1440), "pick S": (4.04, 1.1269),
    "pick T": (3.79, 1.0924),
}  # fmt: skip


@pytest.fixture(scope="module")
def template() -> TStddev:
    meter = TStddevMeter(3, teacher="stub")
    for step in range(20):
        logits = torch.tensor([[step % 7, 1.0, 0.0]])
        meter.add(logits, logits)
    return meter.result()


def pearson(one: list[float], other: list[float]) -> float:
    a, b = (sum(values) / len(values) for values in (one, other))
    above = sum((x - a) * (y - b) for x, y in zip(one, other))
    return above / math.sqrt(sum((x - a) ** 2 for x in one) * sum((y - b) ** 2 for y in other))


def kendall(one: list[float], other: list[float]) -> float:
    signs = [(x - u) * (y - v) for (x, y), (u, v) in combinations(zip(one, other), 2)]
    return sum((sign > 0) - (sign < 0) for sign in signs) / len(signs)


def test_the_published_coefficients_come_out_again(template):
    scores, losses = (list(column) for column in zip(*PUBLISHED.values()))
    found = rank_correlation(
        {name: replace(template, score=score) for name, (score, _) in PUBLISHED.items()},
        {name: loss for name, (_, loss) in reversed(PUBLISHED.items())},
    )
    assert found.count == 9
    assert found.pearson.coefficient == pytest.approx(0.9404, abs=5e-4)  # the table's scores have three digits
    assert found.spearman.coefficient == pytest.approx(0.9333, abs=5e-5)
    assert found.kendall.coefficient == pytest.approx(0.8333, abs=5e-5)
    assert found.pearson.coefficient == pytest.approx(pearson(scores, losses), rel=1e-12)
    ranks = [[sorted(column).index(value) for value in column] for column in (scores, losses)]
    assert found.spearman.coefficient == pytest.approx(pearson(*ranks), rel=1e-12)
    assert found.kendall.coefficient == pytest.approx(kendall(scores, losses), rel=1e-12)
    assert all(0 < one.p_value < 0.01 for one in (found.pearson, found.spearman, found.kendall))


def test_a_p_value_is_the_share_of_orders_that_agree_as_well(template):
    """Of four in perfect order: two of 24 orders, up and down, are as extreme."""
    results = {str(n): replace(template, score=float(n)) for n in range(1, 5)}
    found = rank_correlation(results, {str(n): -float(n) for n in range(1, 5)})
    assert found.kendall.coefficient == -1 and found.kendall.p_value == pytest.approx(2 / 24)
    assert found.spearman.coefficient == -1 and found.spearman.p_value == pytest.approx(2 / 24)
    found = rank_correlation(results, {"1": 0.1, "2": 0.3, "3": 0.2, "4": 0.4})
    assert found.spearman.coefficient == pytest.approx(0.8)
    assert found.spearman.p_value == pytest.approx(
        8 / 24
    )  # by squared rank differences: 1 order of 0, 3 of 2, mirrored


def test_more_results_than_students(template):
    results = {name: replace(template, score=score) for name, (score, _) in PUBLISHED.items()}
    found = rank_correlation(results, {name: PUBLISHED[name][1] for name in ("flip", "mixup", "cutout")})
    assert found.count == 3


def test_without_variation_there_is_no_coefficient(template):
    results = {name: replace(template, score=1.0) for name in "abc"}
    found = rank_correlation(results, {"a": 1.0, "b": 2.0, "c": 3.0})
    assert found.pearson.coefficient is None and found.kendall.p_value is None


def test_what_is_refused(template):
    results = {name: replace(template, score=number) for number, name in enumerate("abc")}
    with pytest.raises(ConfigError) as refused:
        rank_correlation(results, {"a": math.nan, "d": 1.0})
    assert [part in text for part, text in zip(("d: no T. stddev", "a: loss", "got 2; exp"), refused.value.problems)]
    assert len(refused.value.problems) == 3
    with pytest.raises(ConfigError, match="cannot compare 'a' and 'b': teacher"):
        rank_correlation(results | {"b": replace(template, teacher="x")}, {"a": 1.0, "b": 2.0, "c": 3.0})
