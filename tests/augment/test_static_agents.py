"""What every static agent promises: pure views of the right shape; and how agents are built by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rolekd_ray.augment.ops import OPS
from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.augment.static import STATIC_AGENTS, static_agent
from rolekd_ray.augment.static.autoaugment_policies import POLICIES
from rolekd_ray.augment.static.dirichlet import dirichlet
from rolekd_ray.errors import InputError
from rolekd_ray.policy.space import OP_UNITS
from rolekd_ray.roles import Role

AT = {"seed": 5, "role": Role.STUDENT, "epoch": 3}
FILL = torch.tensor([125, 123, 114], dtype=torch.uint8)
CHANGING = [name for name in STATIC_AGENTS if name != "none"]
NAMES = list(OP_UNITS)


def images(count: int, shape: tuple[int, ...] = (3, 32, 32)) -> torch.Tensor:
    coarse = torch.rand(count, shape[0], 4, 4, generator=torch.manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear")
    return smooth.mul(255).byte()


def agent(name: str, channels: int = 3, **given_: object):
    return static_agent(name, given_, FILL[:channels])


def _key(name: str, seed: int, role: Role, epoch: int) -> int:
    return stream_key(seed, role, epoch, name)


def test_the_names():
    assert set(STATIC_AGENTS) == {"none", "randaugment", "trivial_augment_wide", "autoaugment", "augmix", "cutout"}


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 9, 5)])
@pytest.mark.parametrize("name", STATIC_AGENTS)
def test_batch_composition_and_order_change_no_bit(name, shape):
    made, indices = images(70, shape), torch.arange(70) * 7
    before, view = made.clone(), agent(name, shape[0])
    whole = view(made, indices, **AT)
    assert whole.dtype == torch.uint8 and whole.shape == made.shape
    assert torch.equal(whole, made) == (name == "none")
    for size in (1, 33):
        parts = [view(m, i, **AT) for m, i in zip(made.split(size), indices.split(size))]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(made, before), "an agent wrote into its input"
    assert view(made[:0], indices[:0], **AT).shape == (0, *shape)


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(CHANGING), chosen=st.lists(st.integers(0, 39), min_size=1, max_size=40), data=st.data())
def test_a_view_is_a_function_of_its_sample_alone(name, chosen, data):
    """Any samples, in any order, any of them more than once; the agent's settings any."""
    given_ = {
        "randaugment": {"ops": data.draw(st.integers(0, 3)), "magnitude": data.draw(st.integers(0, 30))},
        "autoaugment": {"dataset": data.draw(st.sampled_from(sorted(POLICIES)))},
        "augmix": {"width": data.draw(st.integers(1, 4)), "alpha": data.draw(st.floats(0.01, 100))},
        "cutout": {"pixels": data.draw(st.integers(0, 20))},
    }.get(name, {})
    made, indices, rows = images(40, (3, 7, 10)), torch.arange(40) + 1000, torch.tensor(chosen)
    whole = agent(name, **given_)(made, indices, **AT)
    assert torch.equal(agent(name, **given_)(made[rows], indices[rows], **AT), whole[rows])


@pytest.mark.parametrize("name", CHANGING)
def test_only_seed_role_epoch_and_index_change_the_view(name):
    made, indices, view = images(64), torch.arange(64), agent(name)
    first = view(made, indices, **AT)
    torch.manual_seed(1)
    for epoch in range(3):
        view(made, indices, seed=5, role=Role.STUDENT, epoch=epoch)
    assert torch.equal(view(made, indices, **AT), first)
    for other in ({"seed": 6}, {"role": Role.TEACHER}, {"epoch": 4}):
        assert not torch.equal(view(made, indices, **(AT | other)), first)
    assert not torch.equal(view(made, indices + 64, **AT), first)


@pytest.mark.parametrize("name", CHANGING)
def test_the_view_may_be_saved_for_backward(name):
    view = agent(name)(images(8), torch.arange(8), **AT)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (view.float() * weight).sum().backward()
    assert weight.grad is not None and not view.is_inference()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", STATIC_AGENTS)
def test_views_are_equal_on_cuda(name, photographs):
    indices = torch.arange(len(photographs))
    cpu = agent(name)(photographs, indices, **AT)
    cuda = static_agent(name, {}, FILL.cuda())(photographs.cuda(), indices.cuda(), **AT)
    assert torch.equal(cpu, cuda.cpu())


def test_randaugment_of_the_weakest_bin_changes_only_what_has_no_strength(photographs):
    """At bin 0 solarize still inverts white, so white is left out; auto_contrast and equalize have no strength."""
    dark = photographs[:, :, :16, :28].clamp(max=254)
    view = agent("randaugment", magnitude=0)
    ops, _ = view._drawn(dark, torch.arange(200), _key("randaugment", **AT))
    strong = torch.isin(ops, torch.tensor([NAMES.index("auto_contrast"), NAMES.index("equalize")])).any(1)
    views = view(dark, torch.arange(200), **AT)
    assert torch.equal(views[~strong], dark[~strong])
    assert (views[strong] != dark[strong]).flatten(1).any(1).double().mean() > 0.9


@pytest.mark.parametrize("given_", [{}, {"width": 1, "depth": 2, "alpha": 0.3}, {"severity": 10, "width": 4}], ids=str)
@pytest.mark.parametrize("channels", [3, 1])
def test_augmix_mixes_its_chains_as_a_loop_does(given_, channels, photographs):
    """Each image alone, each chain op by op, the mix in float64 and rounded."""
    made, indices = photographs[:25, :channels, :, :30].contiguous(), torch.arange(25)
    view = agent("augmix", channels, **given_)
    shares, ops, magnitudes = view._drawn(made, indices, _key("augmix", **AT))
    views = view(made, indices, **AT)
    for n in range(25):
        mix = shares[n, 0].double() / 65536 * made[n].double()
        for chain in range(view.width):
            image, row = made[n : n + 1], chain * 25 + n
            for op, magnitude in zip(ops[row].tolist(), magnitudes[row : row + 1].unbind(1)):
                if op >= 0:
                    image = OPS[NAMES[op]](image, magnitude, torch.zeros(1, 2), FILL[:channels])
            mix = mix + shares[n, 1 + chain].double() / 65536 * image[0].double()
        assert torch.equal(views[n], (mix + 0.5).floor().byte()), n


def test_shares_add_up_to_one_at_any_alpha():
    draws = torch.rand(500, 3, generator=torch.manual_seed(0))
    draws[0], draws[1] = 0.0, 1 - 2**-24
    for alpha in (0.01, 0.3, 1, 100.0):
        shares = dirichlet(draws, alpha)
        assert (shares >= 0).all() and torch.allclose(shares.sum(1), torch.ones(500, dtype=torch.float64))
    assert dirichlet(draws, 0.01).amax(1).median() > 0.999 and dirichlet(draws, 100.0).amax(1).median() < 0.4
    wanted = -torch.log1p(-(torch.floor(draws.double() * 65536) + 0.5) / 65536)  # Gamma(1) is the exponential
    assert torch.allclose(dirichlet(draws, 1), wanted / wanted.sum(1, keepdim=True), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "given_", "words"),
    [
        ("randaugmnet", {}, ["unknown static agent 'randaugmnet'", "Did you mean 'randaugment'?"]),
        ("randaugment", {"op": 2}, ["agents.randaugment: unknown setting 'op'", "Did you mean 'ops'?"]),
        ("none", {"ops": 2}, ["agents.none: unknown setting 'ops'", "expected none"]),
        ("randaugment", {"ops": -1, "magnitude": 31}, ["agents.randaugment.ops", "got -1", "got 31", "from 0 to 30"]),
        ("randaugment", {"ops": 2.0}, ["got 2.0; expected a whole number"]),
        ("autoaugment", {"dataset": "cifar"}, ["got 'cifar'", "cifar10, svhn, imagenet", "Did you mean 'cifar10'?"]),
        ("augmix", {"severity": 11, "alpha": 0, "width": 0}, ["severity", "from 1 to 10", "alpha", "width"]),
        ("augmix", {"alpha": float("nan")}, ["alpha"]),
        ("cutout", {"pixels": True}, ["agents.cutout.pixels", "got True"]),
    ],
)
def test_what_is_wrong_is_said_at_once(name, given_, words):
    with pytest.raises(InputError) as error:
        static_agent(name, given_, FILL)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert len(error.value.problems) == max(1, len(given_))
