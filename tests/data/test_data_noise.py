"""Label noise: against a loop, by its rates, and by what must not move a label."""

import hashlib

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray.config import NoiseSettings
from rolekd_ray.data.noise import expected_wrong_share, noisy_labels
from rolekd_ray.data.splits import stratified_split
from rolekd_ray.errors import DataError

KINDS = ("symmetric", "symmetric_other", "pair_flip")
MANY = torch.arange(50_000) * 7919 % 10


def noise(kind: str = "symmetric", rate: float = 0.4, seed: int = 0) -> NoiseSettings:
    return NoiseSettings(kind=kind, rate=rate, seed=seed)


@st.composite
def problems(draw):
    classes = draw(st.integers(2, 12))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=60))
    given = noise(draw(st.sampled_from(KINDS)), draw(st.floats(0, 1)), draw(st.integers(-(2**63), 2**64)))
    return torch.tensor(labels), classes, given


# ---- against a loop


def mixed(word: int) -> int:
    for bits, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ word >> bits) * multiplier % 2**64
    return word ^ word >> 31


def drawn(seed: int, image: int, draw: int) -> float:
    key = int.from_bytes(hashlib.blake2b(f"label noise\x1f{seed}\x1f".encode(), digest_size=8).digest(), "little")
    golden = 0x9E3779B97F4A7C15
    state = mixed((image * golden + key) % 2**64) + (draw + 1) * golden
    return (mixed(state % 2**64) >> 40) / 2**24


@settings(max_examples=60, deadline=None)
@given(problems())
def test_labels_equal_a_loop_over_images(problem):
    labels, classes, given = problem
    expected = []
    for image, label in enumerate(labels.tolist()):
        others = [c % classes for c in range(label + 1, label + classes)]
        which = drawn(given.seed, image, 1)
        replacement = {
            "symmetric": int(which * classes),
            "symmetric_other": others[int(which * (classes - 1))],
            "pair_flip": others[0],
        }[given.kind]
        expected.append(replacement if drawn(given.seed, image, 0) < given.rate else label)
    assert noisy_labels(labels, classes, given).tolist() == expected


def test_labels_are_the_same_on_every_machine():
    found = noisy_labels(torch.arange(24) % 10, 10, noise("symmetric", 0.5, seed=3))
    assert found.tolist() == [9, 1, 5, 9, 4, 4, 6, 2, 8, 9, 4, 1, 9, 1, 4, 5, 8, 6, 9, 9, 0, 1, 2, 8]


# ---- what must not move a label


@settings(max_examples=60, deadline=None)
@given(problems(), st.data())
def test_a_label_follows_from_seed_and_image_alone(problem, data):
    labels, classes, given = problem
    whole = noisy_labels(labels, classes, given)
    size = data.draw(st.integers(1, len(labels)))
    assert torch.equal(noisy_labels(labels[:size], classes, given), whole[:size])
    one = data.draw(st.integers(0, len(labels) - 1))
    others = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=len(labels), max_size=len(labels))))
    others[one] = labels[one]
    assert noisy_labels(others, classes, given)[one] == whole[one]


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0, 1))
def test_a_higher_rate_replaces_what_a_lower_one_does_and_more(problem, rate):
    labels, classes, given = problem
    low, high = sorted([rate, given.rate])
    fewer, more = (noisy_labels(labels, classes, given.model_copy(update={"rate": r})) for r in (low, high))
    assert torch.equal(more[fewer != labels], fewer[fewer != labels])


def test_the_given_labels_stay_and_seeds_differ():
    labels = MANY.clone()
    first, second = (noisy_labels(labels, 10, noise(seed=seed)) for seed in (0, 1))
    assert torch.equal(labels, MANY) and first.dtype == torch.int64
    # Both replaced and unequal, or one replaced alone: 0.4 * 0.4 * 0.9 + 2 * 0.4 * 0.6 * 0.9 = 0.576 of the labels
    assert (first != second).double().mean().item() == pytest.approx(0.576, abs=0.012)


@pytest.mark.parametrize("seed", [0, 1])
def test_who_is_held_out_says_nothing_about_who_is_hit(seed):
    """Also where the split has the same seed: drawn from one stream, the two would depend on each other."""
    split = stratified_split(MANY, train=5000, validation=5000, seed=seed)
    wrong = (noisy_labels(MANY, 10, noise(seed=seed)) != MANY).double()
    for part in (split.train, split.validation):
        assert wrong[part].mean().item() == pytest.approx(0.36, abs=5 * (0.36 * 0.64 / 5000) ** 0.5)


# ---- rates


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
def test_the_share_of_wrong_labels_is_the_expected_one(kind, rate):
    """The study's levels; symmetric noise makes 18, 36 and 54 % wrong. Tolerance: five binomial deviations."""
    expected = {0.2: 0.18, 0.4: 0.36, 0.6: 0.54}[rate] if kind == "symmetric" else rate
    assert expected_wrong_share(10, noise(kind, rate)) == pytest.approx(expected, abs=1e-12)
    deviation = (expected * (1 - expected) / len(MANY)) ** 0.5
    for seed in (0, 1):
        wrong = (noisy_labels(MANY, 10, noise(kind, rate, seed)) != MANY).double().mean().item()
        assert wrong == pytest.approx(expected, abs=5 * deviation)


def test_symmetric_noise_draws_all_classes_equally_often_the_true_one_too():
    found = noisy_labels(MANY, 10, noise("symmetric", 1.0))
    table = torch.stack([found[label == MANY].bincount(minlength=10) for label in range(10)])
    # Each cell is Binomial(5000, 0.1): deviation 21.2; five of them
    assert (table - 500).abs().max() < 106


def test_symmetric_noise_among_the_others_never_gives_the_true_class():
    found = noisy_labels(MANY, 10, noise("symmetric_other", 1.0))
    table = torch.stack([found[label == MANY].bincount(minlength=10) for label in range(10)])
    assert (table.diagonal() == 0).all()
    # Binomial(5000, 1/9): deviation 22.2; five of them
    assert (table[~torch.eye(10, dtype=torch.bool)] - 5000 / 9).abs().max() < 111


def test_a_pair_flip_goes_to_the_next_class_only():
    found = noisy_labels(MANY, 10, noise("pair_flip", 0.5))
    wrong = found != MANY
    assert wrong.any() and not wrong.all()
    assert torch.equal(found[wrong], (MANY[wrong] + 1) % 10)
    assert set(found[wrong & (MANY == 9)].tolist()) == {0}


@pytest.mark.parametrize("kind", KINDS)
def test_no_rate_and_full_rate(kind):
    assert torch.equal(noisy_labels(MANY, 10, noise(kind, 0.0)), MANY)
    unchanged = (noisy_labels(MANY, 10, noise(kind, 1.0)) == MANY).double().mean().item()
    assert unchanged == pytest.approx(0.1 if kind == "symmetric" else 0.0, abs=0.007)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_cannot_be_noisy(kind):
    with pytest.raises(DataError, match=r"^data\.noise: got 1 class; expected at least 2$"):
        noisy_labels(torch.zeros(3, dtype=torch.int64), 1, noise(kind))


def test_real_labels(shared_data):
    labels = torch.from_numpy(pq.read_table(shared_data / "cifar10" / "train.parquet", columns=["label"])["label"]
                              .to_numpy().copy())  # fmt: skip
    wrong = noisy_labels(labels, 10, noise("symmetric", 0.2)) != labels
    assert len(labels) == 50_000
    assert wrong.double().mean().item() == pytest.approx(0.18, abs=5 * (0.18 * 0.82 / 50_000) ** 0.5)
    # In every class alike, within five deviations of Binomial(5000, 0.18)
    assert (labels[wrong].bincount(minlength=10) - 900).abs().max() < 5 * (5000 * 0.18 * 0.82) ** 0.5
