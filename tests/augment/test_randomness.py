"""The counter-based random numbers: pure, device-independent, and random."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest, norm

from rolekd_ray.augment.randomness import below, normals, stream_key, uniforms

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """SplitMix64's output function in Python's unbounded integers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def one(key: int, index: int, draw: int) -> float:
    golden = 0x9E3779B97F4A7C15
    seed = splitmix((index * golden + key) & MASK)
    return (splitmix((seed + (draw + 1) * golden) & MASK) >> 40) / 2**24


def test_splitmix_reference_values():
    """The first outputs of the published generator (seed 1234567) for the formula that `one` uses."""
    golden, seed = 0x9E3779B97F4A7C15, 1234567
    outputs = [splitmix((seed + (i + 1) * golden) & MASK) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=50, deadline=None)
@given(
    key=st.integers(0, MASK),
    indices=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
    draws=st.lists(st.integers(-1000, 1000), min_size=1, max_size=5),
)
def test_equals_the_formula_in_unbounded_integers(key, indices, draws):
    got = uniforms(key, torch.tensor(indices), torch.tensor(draws))
    assert got.dtype == torch.float32
    assert got.tolist() == [[one(key, index, draw) for draw in draws] for index in indices]


def test_a_count_of_draws_is_the_first_draws():
    indices = torch.tensor([3, 1, 3])
    whole = uniforms(7, indices, 5)
    assert torch.equal(whole, uniforms(7, indices, torch.arange(5)))
    assert torch.equal(whole[:, 3:], uniforms(7, indices, torch.tensor([3, 4])))
    assert torch.equal(whole[0], whole[2])
    assert uniforms(7, indices[:0], 5).shape == (0, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_equal_on_cuda():
    indices = torch.arange(100_000)
    assert torch.equal(uniforms(11, indices, 7), uniforms(11, indices.cuda(), 7).cpu())


def test_keys_are_the_same_in_every_process_and_version():
    assert stream_key(3, "student", 7, "policy") == 10511505440752477800


def test_keys_tell_their_parts_apart():
    keys = {stream_key(*parts) for parts in [(1, 23), (12, 3), (123,), ("1", "2", "3"), (), ("",), (1, 23, "")]}
    assert len(keys) == 7
    assert all(0 <= key <= MASK for key in keys)


def sample(name: str) -> np.ndarray:
    """Streams that a weak mixing function gets wrong: neighbours along each of the three coordinates."""
    key = stream_key(0, "student", name)
    if name == "indices":
        return uniforms(key, torch.arange(200_000), 1).numpy()
    if name == "strided indices":
        return uniforms(key, torch.arange(0, 200_000 * 4096, 4096), 1).numpy()
    if name == "draws":
        return uniforms(key, torch.arange(1000), 200).numpy()
    keys = range(1000) if name == "small keys" else [stream_key(0, "student", epoch) for epoch in range(1000)]
    return np.array([uniforms(key, torch.tensor([5]), 200).numpy() for key in keys])


@pytest.mark.parametrize("name", ["indices", "draws", "keys", "small keys", "strided indices"])
def test_uniform_and_uncorrelated(name):
    """Fixed streams; each bound is the 1e-4 tail, so 20 tests of a good generator fail with chance 0.2 %."""
    values = sample(name).astype(np.float64).ravel()
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=256, range=(0, 1))[0]
    statistic = ((counts - len(values) / 256) ** 2 / (len(values) / 256)).sum()
    assert chi2.ppf(1e-4, 255) < statistic < chi2.isf(1e-4, 255)
    assert kstest(values, "uniform").pvalue > 1e-4
    for lag in (1, 2, 7, 100):
        r = np.corrcoef(values[:-lag], values[lag:])[0, 1]
        assert abs(r) < 3.9 / math.sqrt(len(values)), lag
    pairs = np.histogram2d(values[:-1], values[1:], bins=16, range=[[0, 1], [0, 1]])[0]
    expected = (len(values) - 1) / 256
    assert ((pairs - expected) ** 2 / expected).sum() < chi2.isf(1e-4, 255)


def test_every_bit_of_the_mantissa_is_fair():
    words = (uniforms(stream_key("bits"), torch.arange(100_000), 1)[:, 0].double() * 2**24).long()
    ones = torch.stack([(words >> bit) & 1 for bit in range(24)]).double().mean(1)
    assert (ones - 0.5).abs().max() < 4.3 * 0.5 / math.sqrt(100_000)  # 24 two-sided tests at 1.7e-5 each


def test_below_reaches_all_numbers_and_no_more():
    top = torch.tensor([0.0, 1 - 2**-24])
    for count in (1, 3, 9, 28, 33, 1000, 2**20 + 1):
        assert below(top, count).tolist() == [0, count - 1]
    counts = torch.bincount(below(uniforms(1, torch.arange(90_000), 1), 9)[:, 0], minlength=9).double()
    assert ((counts - 10_000) ** 2 / 10_000).sum() < chi2.isf(1e-4, 8)


def test_normals_are_normal():
    for name, values in (
        ("indices", normals(stream_key("n"), torch.arange(200_000), 1)),
        ("draws", normals(stream_key("n"), torch.arange(1000), 200)),
    ):
        flat = values.double().numpy().ravel()
        assert kstest(flat, "norm").pvalue > 1e-4, name
        assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 3.9 / math.sqrt(len(flat)), name


def test_normals_equal_scipys_quantiles_and_are_finite_at_both_ends(monkeypatch):
    from rolekd_ray.augment import randomness

    cells = torch.tensor([[0, 1, 1000, 2**23 - 1, 2**23, 2**24 - 2, 2**24 - 1]])
    monkeypatch.setattr(randomness, "uniforms", lambda *given: (cells.double() / 2**24).float())
    got = normals(0, torch.tensor([0]), 7)
    assert got.dtype == torch.float32 and got.isfinite().all() and (got != 0).all()
    wanted = norm.ppf((cells.double().numpy() + 0.5) / 2**24)
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-6)
    assert got[0, 0] == -got[0, -1] and 5.4 < got[0, -1] < 5.42


def test_normals_do_not_depend_on_the_place_in_the_batch():
    indices = torch.randperm(1000)
    whole = normals(9, indices, 5)
    assert torch.equal(torch.cat([normals(9, part, 5) for part in indices.split(7)]), whole)
    assert torch.equal(normals(9, indices, torch.tensor([3, 1])), whole[:, [3, 1]])
