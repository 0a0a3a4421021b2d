import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray.data import load_image_set, stratified_split
from rolekd_ray.data.splits import stratified_subset
from rolekd_ray.errors import DataError


@st.composite
def problems(draw):
    labels = draw(st.lists(st.integers(0, 6), min_size=1, max_size=120))
    validation = draw(st.integers(0, len(labels) - 1))
    train = draw(st.integers(1, len(labels) - validation))
    return torch.tensor(labels), train, validation, draw(st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_sizes_are_exact_and_parts_disjoint(problem):
    labels, train, validation, seed = problem
    split = stratified_split(labels, train=train, validation=validation, seed=seed)
    assert (len(split.train), len(split.validation)) == (train, validation)
    both = torch.cat([split.train, split.validation]).tolist()
    assert len(set(both)) == len(both) and set(both) <= set(range(len(labels)))
    for part in (split.train, split.validation):
        assert part.dtype == torch.int64 and part.tolist() == sorted(part.tolist())


@settings(max_examples=150, deadline=None)
@given(problems())
def test_each_class_has_its_share_within_one(problem):
    labels, train, validation, seed = problem
    split = stratified_split(labels, train=train, validation=validation, seed=seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[split.validation] = True
    for part, pool in ((split.validation, labels), (split.train, labels[~held_out])):
        for name in range(7):
            exact = len(part) * (pool == name).sum().item() / len(pool)
            assert abs((labels[part] == name).sum().item() - exact) < 1


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_validation_does_not_depend_on_train(problem, data):
    labels, train, validation, seed = problem
    split = stratified_split(labels, train=train, validation=validation, seed=seed)
    other = data.draw(st.none() | st.integers(1, len(labels) - validation))
    assert torch.equal(
        stratified_split(labels, train=other, validation=validation, seed=seed).validation, split.validation
    )
    again = stratified_split(labels, train=train, validation=validation, seed=seed)
    assert torch.equal(again.train, split.train) and torch.equal(again.validation, split.validation)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_a_subset_of_all_that_are_left_is_what_the_split_takes(problem):
    labels, train, validation, seed = problem
    left = stratified_split(labels, train=None, validation=validation, seed=seed).train
    expected = stratified_split(labels, train=train, validation=validation, seed=seed).train
    if set(labels[expected].tolist()) == set(labels[left].tolist()):
        shuffled = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(seed % 1000))]
        assert torch.equal(stratified_subset(labels, shuffled, size=train, seed=seed), expected)
    else:
        with pytest.raises(DataError, match="which leaves none of label"):
            stratified_subset(labels, left, size=train, seed=seed)


def test_a_subset_lies_among_its_places_in_their_proportions():
    labels = torch.arange(400) % 4
    places = torch.cat([(labels == label).nonzero().flatten()[:count] for label, count in enumerate((80, 40, 20, 4))])
    found = stratified_subset(labels, places, size=36, seed=1)
    assert set(found.tolist()) < set(places.tolist())
    assert labels[found].bincount().tolist() == [20, 10, 5, 1]


@pytest.mark.parametrize(
    ("size", "problem"),
    [
        (
            21,
            "data.train or final.train: got 21; expected at most 20, which validation and imbalance leave",
        ),
        (
            2,
            "data.train or final.train: got 2, which leaves none of label 1, 2; expected more, or less imbalance",
        ),
    ],
)
def test_a_subset_that_cannot_be(size, problem):
    labels = torch.tensor([0] * 18 + [1, 2])
    with pytest.raises(DataError) as caught:
        stratified_subset(labels, torch.arange(20), size=size, seed=0)
    assert caught.value.problems == (problem,)


def test_no_train_size_takes_all_that_are_left():
    labels = torch.arange(50) % 4
    split = stratified_split(labels, train=None, validation=13, seed=3)
    assert sorted(torch.cat([split.train, split.validation]).tolist()) == list(range(50))


def test_split_is_the_same_on_every_machine():
    split = stratified_split(torch.arange(40) % 3, train=6, validation=5, seed=7)
    assert split.validation.tolist() == [6, 24, 31, 32, 37]
    assert split.train.tolist() == [4, 10, 21, 23, 35, 39]


def test_split_equals_a_plain_rule():
    """Each class in the order of its images' random keys: first the held-out ones, then the training ones."""
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 10)
    keys = np.random.PCG64(11).random_raw(40)
    split = stratified_split(labels, train=8, validation=4, seed=11)
    validation, train = [], []
    for start, stop, held_out, taken in ((0, 10, 1, 2), (10, 30, 2, 4), (30, 40, 1, 2)):
        order = sorted(range(start, stop), key=lambda i: int(keys[i]))
        validation += order[:held_out]
        train += order[held_out : held_out + taken]
    assert split.validation.tolist() == sorted(validation) and split.train.tolist() == sorted(train)


def test_every_image_is_held_out_equally_often():
    labels = torch.tensor([0] * 30 + [1] * 10)
    counts = torch.zeros(40)
    for seed in range(2000):
        counts[stratified_split(labels, train=1, validation=8, seed=seed).validation] += 1
    # Binomial(2000, 0.2): standard deviation 17.9; five of them, seeds fixed.
    assert (counts - 400).abs().max() < 90


def test_seeds_differ():
    labels = torch.arange(200) % 10
    first, second = (stratified_split(labels, train=None, validation=50, seed=seed).validation for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"train": 8, "validation": 5}, ["train 8", "validation 5", "12"]),
        ({"train": None, "validation": 12}, ["all that are left", "validation 12", "12"]),
        ({"train": 0, "validation": -1, "seed": -2}, ["train: got 0", "validation: got -1", "seed: got -2"]),
    ],
)
def test_what_does_not_fit_is_named(wanted, words):
    with pytest.raises(DataError) as caught:
        stratified_split(torch.arange(12) % 2, **{"seed": 0, **wanted})
    assert all(word in str(caught.value) for word in words)


def test_real_labels(cifar_slice):
    labels = load_image_set("parquet", cifar_slice, split="train").labels
    split = stratified_split(labels, train=200, validation=100, seed=0)
    assert (labels[split.validation].bincount(minlength=10) * 3 - labels.bincount(minlength=10)).abs().max() < 3
