"""Class imbalance: published counts, formulae solved another way, and which images stay."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray.config import ExponentialSettings, PowerLawSettings
from rolekd_ray.data.imbalance import exponential_counts, imbalanced, power_law_counts
from rolekd_ray.errors import DataError

LABELS = torch.arange(600) * 7 % 4  # 150 of each of four classes, interleaved
ALL = torch.arange(600)
NAMES = ("cat", "dog", "owl", "fox")


def power_law(gamma: float = 1.0, n_min: int = 10, **other) -> PowerLawSettings:
    return PowerLawSettings(kind="power_law", gamma=gamma, n_min=n_min, **other)


def exponential(ratio: float = 10.0, **other) -> ExponentialSettings:
    return ExponentialSettings(kind="exponential", ratio=ratio, **other)


def problems(*arguments) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        imbalanced(*arguments)
    return error.value.problems


# ---- counts

# 2007.01922's recipe on CIFAR-10: n_max 5000, n_min 250, and each row's sum
STUDY = {
    0.2: ([5000, 858, 557, 439, 375, 333, 304, 282, 264, 250], 8662),
    0.6: ([5000, 1166, 720, 539, 440, 376, 331, 297, 271, 250], 9390),
    1.0: ([5000, 1607, 957, 682, 529, 433, 366, 317, 280, 250], 10421),
    2.0: ([5000, 3173, 1972, 1289, 892, 648, 490, 382, 306, 250], 14402),
    10.0: ([5000, 5000, 4999, 4990, 4909, 4485, 3254, 1645, 656, 250], 35188),
}


@pytest.mark.parametrize("gamma", STUDY)
def test_the_study_s_counts(gamma):
    counts = power_law_counts(10, n_max=5000, n_min=250, gamma=gamma)
    assert (counts, sum(counts)) == STUDY[gamma]


def test_the_usual_long_tailed_cifar():
    """Counts and totals as the code of many long-tail papers prints them."""
    counts = exponential_counts(10, n_max=5000, ratio=100)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50] and sum(counts) == 12406
    assert sum(exponential_counts(100, n_max=500, ratio=10)) == 19573
    found = exponential_counts(100, n_max=500, ratio=100)
    assert found[:8] == [500, 477, 455, 434, 415, 396, 378, 361] and found[-1] == 5


@pytest.mark.parametrize("classes, n_max", [(10, 5000), (100, 500), (10, 4500)])
@pytest.mark.parametrize("ratio", [1, 10, 20, 50, 100, 200])
def test_a_long_tail_equals_the_usual_form(classes, n_max, ratio):
    usual = [int(n_max * (1 / ratio) ** (c / (classes - 1.0))) for c in range(classes)]
    assert exponential_counts(classes, n_max=n_max, ratio=ratio) == usual


sizes = st.tuples(st.integers(1, 6000), st.integers(1, 6000)).map(sorted)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 60), sizes, st.floats(0.05, 8))
def test_a_power_law_equals_its_equations_solved(classes, ends, gamma):
    n_min, n_max = ends
    found = power_law_counts(classes, n_max=n_max, n_min=n_min, gamma=gamma)
    if n_max == n_min:
        assert found == [n_max] * classes
        return
    # a - n_max b = n_max 1^gamma and a - n_min b = n_min K^gamma
    a, b = np.linalg.solve([[1.0, -n_max], [1.0, -n_min]], [n_max, n_min * classes**gamma])
    for c, count in enumerate(found, start=1):
        assert abs(count - a / (b + c**gamma)) <= 0.5 + 1e-4


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), sizes, st.floats(min_value=0, max_value=1e308, exclude_min=True))
def test_power_law_counts_fall_from_n_max_to_n_min(classes, ends, gamma):
    n_min, n_max = ends
    counts = power_law_counts(classes, n_max=n_max, n_min=n_min, gamma=gamma)
    assert counts == sorted(counts, reverse=True)
    assert (len(counts), counts[0], counts[-1]) == (classes, n_max, n_min)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 300), st.integers(1, 6000), st.floats(1, 1e4))
def test_a_long_tail_falls_by_the_ratio(classes, n_max, ratio):
    counts = exponential_counts(classes, n_max=n_max, ratio=ratio)
    assert counts == sorted(counts, reverse=True)
    assert (len(counts), counts[0], counts[-1]) == (classes, n_max, int(n_max / ratio))


def test_a_smaller_gamma_falls_more_steeply():
    totals = [sum(power_law_counts(10, n_max=500, n_min=10, gamma=gamma)) for gamma in (0.2, 0.6, 1.0, 2.0, 10.0)]
    assert totals == sorted(set(totals))


# ---- which images stay


def test_the_first_images_of_each_class_stay():
    places = ALL[5:]
    counts = power_law_counts(4, n_max=100, n_min=10, gamma=1.0)
    left, expected = list(counts), []
    for place in places.tolist():
        if left[int(LABELS[place])] > 0:
            left[int(LABELS[place])] -= 1
            expected.append(place)
    assert imbalanced(LABELS, places, NAMES, power_law(n_max=100)).tolist() == expected
    mixed = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))]
    assert imbalanced(LABELS, mixed, NAMES, power_law(n_max=100)).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(
    st.integers(300, 600),
    st.sampled_from(["first", "random"]),
    st.integers(0, 5),
    st.floats(1, 20),
)
def test_counts_are_exact_and_a_smaller_part_lies_in_a_larger(size, images, seed, ratio):
    places = torch.randperm(600, generator=torch.Generator().manual_seed(size))[:size]
    there = LABELS[places].bincount(minlength=4)
    found = imbalanced(LABELS, places, NAMES, exponential(ratio, images=images, seed=seed))
    counts = exponential_counts(4, n_max=int(there.min()), ratio=ratio)
    assert LABELS[found].bincount(minlength=4).tolist() == counts
    assert found.dtype == torch.int64 and found.tolist() == sorted(set(found.tolist()))
    assert set(found.tolist()) <= set(places.tolist())
    smaller = imbalanced(LABELS, places, NAMES, exponential(2 * ratio, images=images, seed=seed))
    assert set(smaller.tolist()) <= set(found.tolist())


def test_random_images_stay_by_their_own_seed():
    def kept(seed: int) -> set[int]:
        return set(imbalanced(LABELS, ALL, NAMES, exponential(images="random", seed=seed)).tolist())

    assert kept(0) == kept(0) != kept(1)
    assert kept(0) != set(imbalanced(LABELS, ALL, NAMES, exponential()).tolist())
    counts = torch.zeros(600)
    for seed in range(400):
        counts[list(kept(seed))] += 1
    shares = torch.tensor(exponential_counts(4, n_max=150, ratio=10))[LABELS] / 150
    deviations = (counts - 400 * shares).abs() / (400 * shares * (1 - shares)).sqrt().clamp(min=1e-9)
    assert deviations[shares < 1].max() < 5, "every image of a class stays equally often"
    assert (counts[shares == 1] == 400).all()


def test_a_random_image_keeps_its_rank_whatever_else_there_is():
    settings = exponential(ratio=3, n_max=60, images="random", seed=2)
    few = imbalanced(LABELS, ALL[100:], NAMES, settings)
    whole = set(imbalanced(LABELS, ALL, NAMES, settings).tolist())
    assert {place for place in whole if place >= 100} <= set(few.tolist())


def test_the_smallest_class_is_the_measure_of_all():
    labels = torch.tensor([0] * 9 + [1] * 20 + [2] * 7 + [3] * 30)
    found = imbalanced(labels, torch.arange(66), NAMES, power_law(n_min=7))
    assert labels[found].bincount().tolist() == [7, 7, 7, 7]


def test_real_labels(shared_data):
    column = pq.read_table(shared_data / "cifar10" / "train.parquet", columns=["label"])["label"]
    labels = torch.from_numpy(column.to_numpy().copy())
    names = tuple("0123456789")
    for gamma, (counts, total) in STUDY.items():
        found = imbalanced(labels, torch.arange(50_000), names, power_law(gamma, 250, n_max=5000))
        assert (labels[found].bincount().tolist(), len(found)) == (counts, total)
    assert found[:3].tolist() == [0, 1, 2], "hardly anything is left out at gamma 10"


# ---- what is refused


def test_every_class_that_does_not_fit_is_named():
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 7 + [3] * 30)
    assert problems(labels, torch.arange(48), NAMES, exponential(100, n_max=10)) == (
        "data.imbalance: class 'cat' has too few images, got 9 that are not held out; expected at least 10",
        "data.imbalance: class 'owl' would be empty, got 0 images; expected at least 1",
        "data.imbalance: class 'fox' would be empty, got 0 images; expected at least 1",
    )
    assert problems(labels, torch.arange(48), NAMES, power_law(10, 3, n_max=9)) == (
        "data.imbalance: class 'dog' has too few images, got 2 that are not held out; expected at least 9",
        "data.imbalance: class 'owl' has too few images, got 7 that are not held out; expected at least 8",
    )


def test_a_class_without_images_is_named():
    labels = torch.tensor([0, 1] * 5)
    for given_settings in (exponential(1), power_law(), exponential(1, n_max=5)):
        assert problems(labels, torch.arange(10), NAMES, given_settings) == tuple(
            f"data.imbalance: class {name!r} has no image that is not held out; expected at least 1"
            for name in ("owl", "fox")
        )


def test_a_last_class_larger_than_the_smallest_one():
    assert problems(LABELS, ALL, NAMES, power_law(n_min=151)) == (
        "data.imbalance.n_min: got 151; expected at most 150, the images that the smallest class has beside those held "
        "out",
    )


def test_one_class_cannot_be_imbalanced():
    for given_settings in (power_law(), exponential()):
        assert problems(LABELS * 0, ALL, ("cat",), given_settings) == (
            "data.imbalance: got 1 class; expected at least 2",
        )
