"""Attacks against closed forms of linear networks and hand-written loops, and on networks trained on real digits."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from rolekd_ray.data.sources import load_image_set
from rolekd_ray.distill.attacks import boundary_attack, pgd
from rolekd_ray.models.zoo import build_network


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits W x + c of flattened images, in float64."""

    def __init__(self, weights: np.ndarray, offsets: np.ndarray):
        super().__init__()
        self.weights, self.offsets = (nn.Parameter(torch.from_numpy(part)) for part in (weights, offsets))
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).to(self.weights.dtype) @ self.weights.T + self.offsets


def linear(rng: np.random.Generator, classes: int = 2, pixels: int = 6, scale: float = 1.0) -> Linear:
    return Linear(scale * rng.normal(size=(classes, pixels)), 0.1 * rng.normal(size=classes))


def pictures(rng: np.random.Generator, count: int, pixels: int = 6) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(0.3, 0.7, (count, 1, 1, pixels)))


@pytest.fixture(scope="module")
def digits():
    """Test images and a network that was trained on real digits for a few steps."""
    training, test = (load_image_set("digits", None, split=split) for split in ("train", "test"))
    network = build_network("resnet8", num_classes=10, channels=1, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for part in torch.randperm(len(training), generator=seeded())[:1000].split(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(training.images[part] / 255), training.labels[part])
        loss.backward()
        optimizer.step()
    return network.eval(), test.images[:100] / 255, test.labels[:100]


def accuracy(network, images, labels) -> float:
    with torch.no_grad():
        return (network(images).argmax(1) == labels).double().mean().item()


# ---- PGD


def pgd_by_loop(network: Linear, image, label, start, epsilon, step, steps):
    """One image, value by value: the cross-entropy's gradient is sum_k (p_k - [k = label]) W_k."""
    weights, offsets = (part.detach().numpy() for part in (network.weights, network.offsets))
    moved = [min(1.0, max(0.0, v + s)) for v, s in zip(image, start)]
    for _ in range(steps):
        logits = [sum(w * v for w, v in zip(row, moved)) + c for row, c in zip(weights, offsets)]
        top = max(logits)
        total = sum(math.exp(z - top) for z in logits)
        off = [math.exp(z - top) / total - (k == label) for k, z in enumerate(logits)]
        for p in range(len(moved)):
            slope = sum(o * weights[k][p] for k, o in enumerate(off))
            value = moved[p] + step * math.copysign(1, slope)
            moved[p] = min(1.0, image[p] + epsilon, max(0.0, image[p] - epsilon, value))
    return moved


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_pgd_against_a_loop(steps):
    rng = np.random.default_rng(steps)
    network, images, labels = linear(rng, 4), pictures(rng, 5), torch.tensor([0, 1, 2, 3, 0])
    images[0, 0, 0, :3] = torch.tensor([0.0, 1.0, 0.02])
    found = pgd(network, images, labels, epsilon=0.1, step=0.03, steps=steps, generator=seeded(3))
    starts = (2 * torch.rand(images.shape, generator=seeded(3), dtype=torch.float64) - 1) * 0.1
    for image, label, start, moved in zip(
        images.flatten(1).tolist(), labels.tolist(), starts.flatten(1).tolist(), found
    ):
        expected = pgd_by_loop(network, image, label, start, 0.1, 0.03, steps)
        assert moved.flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_pgd_reaches_the_corner_where_a_linear_network_of_two_classes_is_worst():
    """The loss rises with the gap, which is linear: its highest point in the box is a corner."""
    rng = np.random.default_rng(1)
    network, images = linear(rng), pictures(rng, 8)
    labels = torch.arange(8) % 2
    found = pgd(network, images, labels, epsilon=0.05, step=0.02, steps=10, generator=seeded())
    slope = (network.weights[1] - network.weights[0]).detach().sign()
    corners = images + 0.05 * torch.where(labels == 0, 1, -1)[:, None, None, None] * slope
    assert torch.allclose(found, corners, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), epsilon=st.floats(0, 0.6), step=st.floats(0, 0.5), steps=st.integers(0, 4))
def test_pgd_stays_within_epsilon_and_the_range_of_images(seed, epsilon, step, steps):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.uniform(0, 1, (3, 1, 2, 3)).astype(np.float32))
    network = linear(rng, 3, scale=5)
    found = pgd(network, images, torch.arange(3), epsilon=epsilon, step=step, steps=steps, generator=seeded(seed))
    assert found.dtype == images.dtype and found.shape == images.shape and not found.requires_grad
    assert found.min() >= 0 and found.max() <= 1 and (found - images).abs().max() <= epsilon + 1e-6


def test_pgd_never_helps_a_trained_network_and_hurts_more_from_farther_away(digits):
    network, images, labels = digits
    clean = accuracy(network, images, labels)
    assert clean > 0.6, "too little learnt to be attacked"
    found = []
    for epsilon in (0.0, 0.05, 0.3):
        attacked = pgd(network, images, labels, epsilon=epsilon, step=epsilon / 5, steps=10, generator=seeded())
        found.append(accuracy(network, attacked, labels))
    assert clean == found[0] > found[1] > found[2]


def test_pgd_draws_from_its_generator_alone(digits):
    network, images, labels = digits
    options = {"epsilon": 0.1, "step": 0.02, "steps": 2}
    before = torch.get_rng_state()
    first = pgd(network, images[:9], labels[:9], generator=seeded(5), **options)
    torch.rand(3)
    assert torch.equal(pgd(network, images[:9], labels[:9], generator=seeded(5), **options), first)
    assert not torch.equal(pgd(network, images[:9], labels[:9], generator=seeded(6), **options), first)
    torch.set_rng_state(before)


# ---- the boundary


def boundary_by_loop(weights, offsets, image, target, steps, step_size):
    """One image of a linear network, value by value; returns it, and whether it left its class."""
    moved, base = list(image), None
    for _ in range(steps + 1):
        logits = [sum(w * v for w, v in zip(row, moved)) + c for row, c in zip(weights, offsets)]
        top = logits.index(max(logits))
        base = top if base is None else base
        if top != base:
            return moved, True
        slope = [b - k for b, k in zip(weights[base], weights[target])]
        length = math.sqrt(sum(s * s for s in slope))
        last = list(moved)
        if length:
            way = step_size * (logits[base] - logits[target] + 1e-4) / length
            moved = [min(1.0, max(0.0, v - way * s)) for v, s in zip(moved, slope)]
    return last, False


@pytest.mark.parametrize("scale", [0.3, 1, 4, 20])
def test_boundary_attack_against_a_loop(scale):
    rng = np.random.default_rng(int(10 * scale))
    network, images = linear(rng, 4, scale=scale), pictures(rng, 24)
    targets = torch.arange(24) % 4
    moved, crossed = boundary_attack(network, images, targets)
    weights, offsets = network.weights.tolist(), network.offsets.tolist()
    for n, image in enumerate(images.flatten(1).tolist()):
        expected, over = boundary_by_loop(weights, offsets, image, int(targets[n]), 10, 0.3)
        assert moved[n].flatten().tolist() == pytest.approx(expected, abs=1e-9), n
        assert bool(crossed[n]) == over, n
    stayed = network(images).argmax(1) == targets
    assert stayed.any() and torch.equal(moved[stayed], images[stayed]) and not crossed[stayed].any()
    assert crossed.any()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), norm=st.floats(0.2, 5), gap=st.floats(1e-3, 0.3))
def test_the_closed_form_of_two_linear_classes(seed, norm, gap):
    """The way is along the normal; after n steps the gap is (1 - η ‖w‖)^n (d + ε) - ε, until it is below 0."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=400)
    normal *= norm / np.linalg.norm(normal)
    image = torch.full((1, 1, 20, 20), 0.5, dtype=torch.float64)
    network = Linear(np.stack([normal, np.zeros(400)]), np.array([gap - 0.5 * normal.sum(), 0.0]))
    moved, crossed = boundary_attack(network, image, torch.tensor([1]))
    left, edge, count = 1 - 0.3 * norm, 1e-4, 0
    while count < 10 and left**count * (gap + edge) - edge >= 0:
        count += 1
    expected = left**count * (gap + edge) - edge
    logits = network(moved)[0]
    assert (logits[0] - logits[1]).item() == pytest.approx(expected, abs=1e-9)
    assert bool(crossed[0]) == (expected < 0)
    way = (moved - image).flatten().numpy()
    assert np.allclose(way, -(gap - expected) * normal / norm**2, atol=1e-9), "not the shortest way"


def test_one_full_step_at_slope_one_lands_on_the_closest_point_of_the_boundary():
    rng = np.random.default_rng(2)
    normal = rng.normal(size=6)
    normal /= np.linalg.norm(normal)
    network = Linear(np.stack([normal, np.zeros(6)]), np.array([0.05 - 0.5 * normal.sum(), 0.0]))
    image = torch.full((1, 1, 1, 6), 0.5, dtype=torch.float64)
    moved, crossed = boundary_attack(network, image, torch.tensor([1]), step_size=1)
    assert np.allclose((moved - image).flatten(), -(0.05 + 1e-4) * normal, atol=1e-12) and crossed.all()


def test_an_image_stops_where_it_crossed_and_others_go_on(digits):
    """What is fed is the same from then on; the last feed is the result."""
    network, images, labels = digits
    fed = []
    moved, crossed = boundary_attack(lambda x: fed.append(x.detach().clone()) or network(x), images, (labels + 1) % 10)
    assert len(fed) == 11 and torch.equal(fed[0], images) and torch.equal(fed[-1], moved)
    with torch.no_grad():
        classes = torch.stack([network(x).argmax(1) for x in fed])
    over = classes != classes[0]
    assert torch.equal(over[-1], crossed) and 0.3 < crossed.double().mean() < 1
    for earlier, later, done in zip(fed, fed[1:], over):
        assert torch.equal(earlier[done], later[done])
        assert not torch.equal(earlier[~done], later[~done])
    assert moved.min() >= 0 and moved.max() <= 1
    assert over.sum(0)[crossed].unique().numel() > 1, "all stopped at once: nothing was seen"


def test_it_lands_nearer_to_the_boundary_than_it_was(digits):
    network, images, _ = digits
    targets = (network(images).argmax(1) + 1) % 10
    moved, crossed = boundary_attack(network, images, targets)
    with torch.no_grad():
        margins = [network(x).softmax(1).topk(2).values.diff(dim=1).abs()[crossed].mean() for x in (images, moved)]
    assert margins[1] < 0.8 * margins[0]


# ---- both


ATTACKS = {
    "pgd": lambda network, images, labels: pgd(
        network, images, labels, epsilon=0.1, step=0.02, steps=3, generator=seeded()
    ),
    "boundary": lambda network, images, labels: boundary_attack(network, images, (labels + 1) % 10)[0],
}


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("attack", ATTACKS)
def test_network_images_and_their_gradients_stay_as_they_were(digits, attack, grad_mode):
    network, images, labels = copy.deepcopy(digits[0]), digits[1][:20].clone(), digits[2][:20]
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.full_like(parameter, number) if number % 2 else None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with grad_mode():
        found = ATTACKS[attack](network, images, labels)
    assert not found.requires_grad and not torch.equal(found, images)
    assert torch.equal(images, digits[1][:20]) and not images.requires_grad and images.grad is None
    for number, parameter in enumerate(network.parameters()):
        assert parameter.requires_grad
        assert (parameter.grad is None) == (number % 2 == 0)
        assert parameter.grad is None or (parameter.grad == number).all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(ATTACKS[attack](network, images, labels), found), "not the same again"


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_images_way_does_not_depend_on_its_batch(digits, attack):
    """Up to the rounding of other batches' convolutions, which at a kink may send a way elsewhere."""
    network, images, labels = digits
    whole = ATTACKS[attack](network, images[:16], labels[:16])
    if attack == "pgd":
        first = ATTACKS[attack](network, images[:8], labels[:8])
        assert torch.allclose(first, whole[:8], atol=1e-4)
    else:
        singly = torch.cat([ATTACKS[attack](network, images[n : n + 1], labels[n : n + 1]) for n in range(16)])
        assert torch.allclose(singly, whole, atol=1e-4)


def test_a_network_in_training_mode_is_refused(digits):
    network, images, labels = digits
    with pytest.raises(AssertionError, match="BatchNorm"):
        boundary_attack(copy.deepcopy(network).train(), images, labels)


def test_nothing_waits_for_the_device():
    """Values of fake tensors do not exist: what reads one, or a shape that follows from one, is an error."""
    network = build_network("resnet8", num_classes=10, channels=1, seed=0).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        images, labels = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
        assert boundary_attack(network, images, labels)[0].shape == (4, 1, 8, 8)
        with pytest.raises(DynamicOutputShapeException):
            boundary_attack(lambda x: network(x[(x.flatten(1).sum(1) > 0)]), images, labels)
