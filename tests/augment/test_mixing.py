"""The mixing agents: their mixes are pure, follow the published rules, and are applied pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, chi2

from rolekd_ray.augment.beta import beta_quantiles
from rolekd_ray.augment.cutmix import Cutmix
from rolekd_ray.augment.mixing import Mix, Mixing, mixed_targets
from rolekd_ray.augment.mixup import Mixup
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.errors import DataError, TrainingError
from rolekd_ray.roles import Role

AGENTS = {"mixup": Mixup, "cutmix": Cutmix}
AT = {"seed": 5, "role": Role.STUDENT, "epoch": 3}
POOL = torch.arange(1000) * 3 + 1  # a dataset of which a third is trained on


def draw(agent: Mixing, batch, at=None, *, pool=POOL, size=(32, 32), **other) -> Mix:
    batch = torch.as_tensor(batch)
    at = torch.arange(len(batch)) if at is None else torch.as_tensor(at, dtype=torch.int64)
    return agent.draw(batch, at, pool=pool, size=size, **(AT | other))


def rows_of(mix: Mix) -> list[tuple]:
    boxes = [None] * len(mix.share) if mix.boxes is None else [tuple(box) for box in mix.boxes.tolist()]
    return list(zip(mix.partners.tolist(), mix.share.tolist(), boxes))


# ---- against a reference


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("size", [(32, 32), (7, 12), (1, 1)])
def test_a_mix_is_what_its_random_numbers_say(name, size):
    """Sample by sample in Python; alpha 1, for which the share is the random number itself."""
    mix = draw(AGENTS[name](probability=0.8), POOL, size=size)
    assert mix.partners.dtype == torch.int64 and mix.share.dtype == torch.float32
    key, pool, (height, width) = stream_key(5, Role.STUDENT, 3, name), POOL.tolist(), size
    for number, (sample, row) in enumerate(zip(pool, rows_of(mix))):
        who, share, applied, y, x = uniforms(key, torch.tensor([sample]), torch.arange(-1, 4))[0].tolist()
        others = pool[number + 1 :] + pool[:number]
        box, share = None, share if applied < 0.8 else 1.0
        if name == "cutmix":
            half_height, half_width = (math.floor(n * math.sqrt(1 - share) / 2) for n in size)
            y, x = math.floor(y * height), math.floor(x * width)
            box = (max(0, y - half_height), min(height, y + half_height),
                   max(0, x - half_width), min(width, x + half_width))  # fmt: skip
            share = np.float32(1 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width))
        assert row == (others[math.floor(who * 999)], share, box)


@pytest.mark.parametrize("alpha, legacy", [(0.1, False), (1.0, False), (1.7, False), (10.0, False), (0.3, True)])
def test_shares_have_the_moments_and_the_form_of_beta(alpha, legacy):
    if legacy:  # one share a batch
        batches = [torch.tensor([1, 4, 1 + 3 * n]) for n in range(2, 600)]
        shares = torch.cat([draw(Mixup(alpha=alpha, legacy=True), batch, [0]).share for batch in batches])
    else:
        shares = torch.cat([draw(Mixup(alpha=alpha), POOL, epoch=epoch).share for epoch in range(50)])
    values, count = shares.double().numpy(), len(shares)
    assert values.min() >= 0 and values.max() <= 1
    variance, kurtosis = (float(moment) for moment in beta.stats(alpha, alpha, moments="vk"))
    assert abs(values.mean() - 0.5) < 4 * math.sqrt(variance / count)
    assert abs(values.var() / variance - 1) < 4 * math.sqrt((kurtosis + 2) / count)
    points = np.linspace(1e-6, 1 - 1e-6, 999)  # not at the ends: for alpha 0.1 float32 rounds 8 % of the shares to 1
    difference = np.abs((values[:, None] <= points).mean(0) - beta.cdf(points, alpha, alpha)).max()
    assert difference < math.sqrt(math.log(2 / 1e-4) / (2 * count))  # Dvoretzky, Kiefer, Wolfowitz


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.4, 1.0, 3.0, 10.0, 1000.0])
def test_quantiles_are_scipys(alpha):
    uniform = torch.arange(0, 1 << 24, 997).float() * 2.0**-24
    values = beta_quantiles(uniform, alpha)
    assert values.dtype == torch.float64 and values.min() >= 0 and values.max() <= 1
    assert (values.diff() >= 0).all()
    # Only the lower half: next to 1 doubles are too coarse for a small alpha. The upper is its mirror image
    lower = uniform <= 0.5
    error = beta.cdf(values[lower].numpy(), alpha, alpha) - uniform[lower].double().numpy()
    assert np.abs(error).max() < 2**-14
    mirrored = beta_quantiles((1 - 2**-24 - uniform).clamp_(min=0), alpha)
    assert torch.allclose(values, 1 - mirrored, rtol=0, atol=1e-3)
    if alpha == 1:
        assert torch.equal(values, uniform.double())


def test_shares_of_pixels_are_distributed_as_published():
    """Against CutMix's formula with a generator's numbers; H != W."""
    random, (height, width), count = np.random.default_rng(0), (24, 40), 50_000
    ratio = np.sqrt(1 - random.beta(1, 1, count))
    areas = 1.0
    for length in (height, width):
        side, centre = (length * ratio).astype(int), random.integers(0, length, count)
        areas *= np.clip(centre + side // 2, 0, length) - np.clip(centre - side // 2, 0, length)
    published = 1 - areas / (height * width)
    ours = torch.cat([draw(Cutmix(), POOL, size=(height, width), epoch=e).share for e in range(50)]).double().numpy()
    error = math.sqrt(2 * published.var() / count)
    assert abs(ours.mean() - published.mean()) < 4 * error
    assert np.abs(np.quantile(ours, [0.1, 0.3, 0.5, 0.7]) - np.quantile(published, [0.1, 0.3, 0.5, 0.7])).max() < 0.02


def two_views(count=6, shape=(2, 5, 7), dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    views, partners = (torch.randn(count, *shape, generator=generator).to(dtype) for _ in range(2))
    return views, partners


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cutmix_copies_pixels(dtype):
    views, partners = two_views(30, dtype=dtype)
    mix = draw(Cutmix(probability=0.7), POOL[:30], size=(5, 7))
    mixed = Cutmix().apply(views, partners, mix)
    for n, (top, bottom, left, right) in enumerate(mix.boxes.tolist()):
        for y in range(5):
            for x in range(7):
                source = partners if top <= y < bottom and left <= x < right else views
                assert torch.equal(mixed[n, :, y, x], source[n, :, y, x])


def test_mixup_blends():
    views, partners = two_views(30)
    mix = draw(Mixup(alpha=0.1, probability=0.7), POOL[:30])
    mixed = Mixup().apply(views, partners, mix)
    for n, share in enumerate(mix.share.tolist()):
        for got, own, other in zip(mixed[n].flatten().tolist(), views[n].flatten(), partners[n].flatten()):
            assert got == pytest.approx(share * own.item() + (1 - share) * other.item(), abs=1e-6)
        assert share < 1 or torch.equal(mixed[n], views[n])
    assert 1 in mix.share


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    alpha=st.floats(0.05, 20),
    legacy=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_share_is_exactly_that_of_the_pixels(height, width, alpha, legacy, seed):
    agent = Cutmix(alpha=alpha, legacy=legacy)
    mix = draw(agent, POOL[:20], size=(height, width), seed=seed)
    own, other = torch.ones(20, 2, height, width), torch.zeros(20, 2, height, width)
    left = agent.apply(own, other, mix)[:, 1].sum((1, 2))
    assert mix.share.tolist() == [np.float32(pixels / (height * width)) for pixels in left.tolist()]
    first, last = mix.boxes[:, ::2], mix.boxes[:, 1::2]
    assert (first >= 0).all() and (first <= last).all() and (last <= torch.tensor([height, width])).all()


def test_boxes_reach_every_edge():
    """Implementations have left out the last row and column."""
    boxes = draw(Cutmix(), POOL, size=(6, 10)).boxes
    filled = boxes[(boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])]
    assert filled.amin(0)[::2].tolist() == [0, 0] and filled.amax(0)[1::2].tolist() == [6, 10]


# ---- who is mixed with whom


def test_partners_are_all_others_equally_often():
    pool = torch.tensor([2, 3, 5, 7, 11, 13])
    drawn = torch.cat([draw(Mixup(), pool, pool=pool, epoch=epoch).partners.view(1, -1) for epoch in range(500)])
    for column, sample in enumerate(pool.tolist()):
        counts = torch.bincount(drawn[:, column], minlength=14)
        assert counts[sample] == 0 and counts.sum() == counts[pool].sum() == 500
        others = counts[pool[pool != sample]].double()
        assert ((others - 100) ** 2 / 100).sum() < chi2.isf(1e-4, 4)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.integers(0, 400), min_size=2, max_size=20, unique=True),
    name=st.sampled_from(list(AGENTS)),
    legacy=st.booleans(),
    seed=st.integers(0, 2**63),
)
def test_no_sample_is_its_own_partner(samples, name, legacy, seed):
    batch, pool = torch.tensor(samples), torch.tensor(sorted(samples))
    partners = draw(AGENTS[name](legacy=legacy), batch, pool=pool, seed=seed).partners
    assert (partners != batch).all()
    assert set(partners.tolist()) <= set(samples)
    assert not legacy or sorted(partners.tolist()) == sorted(samples)


def test_legacy_pairs_are_all_others_equally_often():
    batch = torch.tensor([10, 30, 20, 50, 40])
    partners = torch.stack([draw(Mixup(legacy=True), batch, epoch=epoch).partners for epoch in range(500)])
    for column, sample in enumerate(batch.tolist()):
        counts = torch.bincount(partners[:, column], minlength=51)[batch[batch != sample]].double()
        assert counts.sum() == 500 and ((counts - 125) ** 2 / 125).sum() < chi2.isf(1e-4, 3)


@pytest.mark.parametrize("name", AGENTS)
def test_one_image_cannot_be_mixed(name):
    with pytest.raises(TrainingError, match=rf"{name}\.legacy: .* got a batch of 1; expected at least 2 images"):
        draw(AGENTS[name](legacy=True), [4])
    with pytest.raises(DataError, match=f"{name}: .* got 1; expected at least 2"):
        draw(AGENTS[name](), [4], pool=torch.tensor([4]))
    assert rows_of(draw(AGENTS[name](), [4]))[0][0] != 4  # a batch of one has the pool's partners
    assert draw(AGENTS[name](), torch.empty(0, dtype=torch.int64)).partners.shape == (0,)


# ---- purity


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(AGENTS)), probability=st.sampled_from([1.0, 0.5]))
def test_a_mix_depends_on_the_sample_alone(data, name, probability):
    agent = AGENTS[name](alpha=0.7, probability=probability)
    places = data.draw(st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=12, unique=True))
    at = data.draw(st.lists(st.integers(0, len(places) - 1), max_size=15))
    everyone = rows_of(draw(agent, POOL))
    assert rows_of(draw(agent, POOL[places], at)) == [everyone[places[a]] for a in at]


@settings(max_examples=30, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(AGENTS)))
def test_a_legacy_mix_depends_on_the_batch_alone(data, name):
    """Each worker asks for its rows."""
    agent = AGENTS[name](legacy=True)
    batch = POOL[data.draw(st.lists(st.integers(0, len(POOL) - 1), min_size=2, max_size=12, unique=True))]
    at = data.draw(st.lists(st.integers(0, len(batch) - 1), max_size=15))
    whole = rows_of(draw(agent, batch))
    assert rows_of(draw(agent, batch, at)) == [whole[a] for a in at]
    assert rows_of(draw(AGENTS[name](legacy=True), batch)) == whole
    assert len({row[1:] for row in whole}) == 1  # one share and one box


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("other", [{"seed": 6}, {"role": Role.TEACHER}, {"epoch": 4}])
def test_seed_role_and_epoch_each_change_the_mix(name, legacy, other):
    agent = AGENTS[name](legacy=legacy)
    one, two = draw(agent, POOL[:50]), draw(agent, POOL[:50], **other)
    assert not torch.equal(one.partners, two.partners) and not torch.equal(one.share, two.share)


def test_samples_have_mixes_of_their_own_and_agents_too():
    mixup, cutmix = draw(Mixup(), POOL[:50]), draw(Cutmix(), POOL[:50])
    assert len({row[1:] for row in rows_of(cutmix)}) > 40 and len(set(mixup.share.tolist())) == 50
    assert not torch.equal(mixup.partners, cutmix.partners)
    reversed_batch = draw(Cutmix(legacy=True), POOL[:50].flip(0))
    assert not torch.equal(reversed_batch.share, draw(Cutmix(legacy=True), POOL[:50]).share)  # the order is the batch's


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("legacy", [False, True])
def test_equal_on_cuda(name, legacy):
    agent, pool = AGENTS[name](alpha=0.3, probability=0.9, legacy=legacy), POOL.cuda()
    here = draw(agent, POOL, size=(5, 7))
    there = draw(agent, pool, torch.arange(1000, device="cuda"), pool=pool, size=(5, 7))
    views, partners = two_views(1000)
    assert rows_of(here) == rows_of(there)
    mixed = agent.apply(views.cuda(), partners.cuda(), there).cpu()
    assert torch.allclose(agent.apply(views, partners, here), mixed, rtol=0, atol=0 if name == "cutmix" else 1e-6)


# ---- settings


@pytest.mark.parametrize("name", AGENTS)
def test_a_sample_is_mixed_with_the_probability(name):
    shares = torch.cat([draw(AGENTS[name](probability=0.3), POOL, epoch=e, size=(99, 99)).share for e in range(20)])
    mixed = (shares < 1).double().mean().item()
    assert abs(mixed - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 20_000) + 0.001  # a few boxes are empty
    never = draw(AGENTS[name](probability=0.0), POOL, size=(5, 7))
    views, partners = two_views(1000)
    assert (never.share == 1).all() and torch.equal(AGENTS[name]().apply(views, partners, never), views)


@pytest.mark.parametrize("name", AGENTS)
def test_a_legacy_batch_is_mixed_as_a_whole(name):
    agent = AGENTS[name](probability=0.5, legacy=True)
    whole = [(draw(agent, POOL[:9], epoch=epoch).share < 1) for epoch in range(200)]
    assert all(len(set(mixed.tolist())) == 1 for mixed in whole)
    assert 70 < sum(mixed[0].item() for mixed in whole) < 130


# ---- what is done with a mix


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("shape", [(3, 8, 6), (1, 8, 6), (3, 1, 1)])
def test_the_memory_format_is_kept_and_nothing_is_written_to(name, shape):
    views, partners = two_views(20, shape)
    before, mix, agent = views.clone(), draw(AGENTS[name](), POOL[:20], size=shape[1:]), AGENTS[name]()
    expected = agent.apply(views, partners, mix)
    assert expected.is_contiguous() and torch.equal(views, before) and expected is not views
    last = views.contiguous(memory_format=torch.channels_last)
    for other in (partners, partners.contiguous(memory_format=torch.channels_last)):
        mixed = agent.apply(last, other, mix)
        assert mixed.is_contiguous(memory_format=torch.channels_last) and torch.equal(mixed, expected)
        assert mixed.stride() == last.stride()


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_go_to_both_images_by_their_shares(name, memory_format):
    views, partners = (v.contiguous(memory_format=memory_format).requires_grad_() for v in two_views(20))
    with torch.inference_mode():  # what was kept from here must not be in the way
        draw(AGENTS[name](alpha=0.9), POOL[:20], size=(5, 7))
        AGENTS[name]().apply(views, partners, draw(AGENTS[name](), POOL[:20], size=(5, 7)))
    mix = draw(AGENTS[name](), POOL[:20], size=(5, 7))
    AGENTS[name]().apply(views, partners, mix).sum().backward()
    assert torch.allclose(views.grad.mean((1, 2, 3)), mix.share, atol=1e-6)
    assert torch.allclose(partners.grad.mean((1, 2, 3)), 1 - mix.share, atol=1e-6)
    (views.sum() * draw(AGENTS[name](alpha=0.9), POOL[:20], size=(5, 7)).share).sum().backward()


@pytest.mark.parametrize("name", AGENTS)
def test_targets_are_the_shares_of_the_classes(name):
    generator = torch.Generator().manual_seed(2)
    labels, anchors = torch.randint(4, (3001,), generator=generator), POOL[[5, 9, 5, 700, 31, 2]]
    mix = draw(AGENTS[name](probability=0.8), POOL, torch.searchsorted(POOL, anchors))
    targets = mixed_targets(labels, anchors, mix, 4)
    assert targets.shape == (6, 4) and targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(6), rtol=0, atol=1e-6)
    for row, anchor, (partner, share, _) in zip(targets.tolist(), anchors.tolist(), rows_of(mix)):
        expected = [0.0] * 4
        expected[labels[anchor]] += share
        expected[labels[partner]] += 1 - share
        assert row == pytest.approx(expected, abs=1e-6)
