"""What the static agents draw, against torchvision's own classes run with their ops taken out.

Two samples, ours and torchvision's, are compared by chi-square. All seeds are fixed; a new seed fails with chance 1e-4
a test.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import chain

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare, ks_2samp
from static_helpers import Recorded, in_our_units, steps_of
from torchvision.transforms import v2

from rolekd_ray.augment.static import static_agent

LEAST_P = 1e-4
FILL = torch.tensor([125], dtype=torch.uint8)


def ours(name: str, count: int, settings: dict[str, object] | None = None, size: tuple[int, int] = (32, 32)):
    """The draws of an agent for so many images: ops and magnitudes, and for augmix the shares before them."""
    agent = static_agent(name, settings or {}, FILL)
    return agent._drawn(torch.zeros(1, 1, *size, dtype=torch.uint8), torch.arange(count), 12345)


def sequences(name: str, count: int, settings: dict[str, object] | None = None) -> list[tuple]:
    ops, magnitudes = ours(name, count, settings)
    return [steps_of(*row) for row in zip(ops.tolist(), magnitudes.tolist())]


def theirs(transform: v2.Transform, count: int, seed: int = 0) -> list[tuple]:
    torch.manual_seed(seed)
    return [tuple(in_our_units(*step[1:]) for step in steps) for steps in Recorded(transform).draw(count)]


def misfit(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """The p-value of both samples coming from one distribution; outcomes seen less than 20 times are pooled."""
    a, b = Counter(one), Counter(other)
    common = [key for key in a | b if a[key] + b[key] >= 20]
    counts = np.array([[c[key] for key in common] for c in (a, b)])
    rest = [len(one) - counts[0].sum(), len(other) - counts[1].sum()]
    if sum(rest) >= 20:
        counts = np.concatenate([counts, np.array(rest)[:, None]], axis=1)
    assert counts.shape[1] > 1
    return chi2_contingency(counts).pvalue


@pytest.mark.parametrize(("ops", "magnitude"), [(2, 9), (1, 30), pytest.param(3, 0, marks=pytest.mark.slow)])
def test_randaugment_draws_op_and_sign_as_torchvision(ops, magnitude):
    mine = sequences("randaugment", 20_000, {"ops": ops, "magnitude": magnitude})
    peer = theirs(v2.RandAugment(num_ops=ops, magnitude=magnitude), 4_000)
    assert {len(steps) for steps in mine} == {ops}
    for place in range(ops):
        assert misfit([s[place] for s in mine], [s[place] for s in peer]) > LEAST_P
    assert {*chain(*mine)} == {*chain(*peer)}
    if ops == 2:
        assert misfit(mine, peer) > LEAST_P


def test_trivial_augment_wide_draws_op_bin_and_sign_as_torchvision():
    mine = sequences("trivial_augment_wide", 50_000)
    peer = theirs(v2.TrivialAugmentWide(), 12_000)
    assert misfit(mine, peer) > LEAST_P
    assert set(mine) == set(peer)


@pytest.mark.parametrize(
    "dataset", ["cifar10", *(pytest.param(name, marks=pytest.mark.slow) for name in ("svhn", "imagenet"))]
)
def test_autoaugment_draws_pairs_as_torchvision(dataset):
    drawn = sequences("autoaugment", 20_000, {"dataset": dataset})
    mine = [tuple(step for step in steps if step[0]) for steps in drawn]  # those that fired
    peer = theirs(v2.AutoAugment(v2.AutoAugmentPolicy(dataset)), 5_000)
    assert misfit(mine, peer) > LEAST_P
    assert {*chain(*mine)} == {*chain(*peer)}


def chains_of(steps: list[tuple[bool, str, float]]) -> list[tuple]:
    chains: list[list] = []
    for first, *step in steps:
        if first:
            chains.append([])
        chains[-1].append(in_our_units(*step))
    return [tuple(chain) for chain in chains]


@pytest.mark.parametrize(
    "settings",
    [{}, {"severity": 10, "depth": 1}, {"width": 1}, pytest.param({"severity": 1, "depth": 2}, marks=pytest.mark.slow)],
    ids=str,
)
def test_augmix_draws_chains_as_torchvision(settings):
    given = {"severity": 3, "width": 3, "depth": -1} | settings
    peer = v2.AugMix(given["severity"], given["width"], given["depth"])
    torch.manual_seed(1)
    peer_chains = [c for steps in Recorded(peer).draw(1_000) for c in chains_of(steps)]
    shares, ops, magnitudes = ours("augmix", 10_000, given)
    assert ops.shape[0] == 10_000 * given["width"] and shares.shape == (10_000, 1 + given["width"])
    mine = [steps_of(*row) for row in zip(ops.tolist(), magnitudes.tolist())]
    mine = [tuple(step for step in chain if step[0]) for chain in mine]
    if given["depth"] < 0:
        assert misfit([len(c) for c in mine], [len(c) for c in peer_chains]) > LEAST_P
    else:
        assert {len(c) for c in mine} == {len(c) for c in peer_chains} == {given["depth"]}
    assert misfit([step for c in mine for step in c], [step for c in peer_chains for step in c]) > LEAST_P


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("width", [1, 3])
def test_augmix_draws_shares_as_torchvision(alpha, width):
    """Each share's distribution, and those of the image's own share and its square summed with the others'."""
    shares = ours("augmix", 10_000, {"alpha": alpha, "width": width})[0].double() / (1 << 16)
    assert torch.equal(shares.sum(1), torch.ones(10_000, dtype=torch.float64)) and shares.min() >= 0
    torch.manual_seed(2)
    peer = v2.AugMix()
    own = peer._sample_dirichlet(torch.full((10_000, 2), alpha, dtype=torch.float64))
    chains = peer._sample_dirichlet(torch.full((10_000, width), alpha, dtype=torch.float64)) * own[:, 1:]
    wanted = torch.cat([own[:, :1], chains], dim=1)
    for mine, theirs_ in zip((*shares.unbind(1), (shares**2).sum(1)), (*wanted.unbind(1), (wanted**2).sum(1))):
        coarse = 1 << 10  # a multiple of 2^-16 is not to be told from the value that was rounded to it
        assert ks_2samp((mine * coarse).round().numpy(), (theirs_ * coarse).round().numpy()).pvalue > LEAST_P


def test_images_draw_independently_and_chains_of_an_image_too():
    _, ops, _ = ours("augmix", 30_000, {"depth": 2})
    first, second = ops[:30_000, 0], ops[30_000:60_000, 0]
    table = torch.zeros(15, 15).index_put_((first, second), torch.ones(30_000), accumulate=True)
    assert chi2_contingency(table[table.sum(1) > 0][:, table.sum(0) > 0].numpy()).pvalue > LEAST_P
    neighbours = torch.zeros(15, 15).index_put_((first[:-1], first[1:]), torch.ones(29_999), accumulate=True)
    kept = neighbours.sum(1) > 0
    assert chi2_contingency(neighbours[kept][:, kept].numpy()).pvalue > LEAST_P


def test_cutout_squares_fall_anywhere():
    """Centres are uniform over the pixels: white images, a square of 2 pixels, its last row and column name them."""
    agent = static_agent("cutout", {"pixels": 2}, torch.tensor([0], dtype=torch.uint8))
    white = torch.full((40_000, 1, 5, 7), 255, dtype=torch.uint8)
    cut = agent(white, torch.arange(40_000), seed=1, role="student", epoch=0)[:, 0] == 0
    rows, columns = cut.any(2), cut.any(1)
    centres = (rows.long() * torch.arange(5)).amax(1) * 7 + (columns.long() * torch.arange(7)).amax(1)
    assert chisquare(torch.bincount(centres, minlength=35).numpy()).pvalue > LEAST_P
