import pytest
import torch
from torch import nn
from training_helpers import same_tree, tiny_settings

from rolekd_ray.config import TrainingSettings
from rolekd_ray.errors import CheckpointError
from rolekd_ray.roles import Role
from rolekd_ray.training.learner import Learner, learning_rate_factor, load_weights, new_learner, new_optimizer


def learner(*overrides: str, roles: tuple[Role, ...] = tuple(Role), key: object = 0, classes: int = 10) -> Learner:
    settings = tiny_settings(*overrides)
    return new_learner(settings, roles, num_classes=classes, channels=1, device=torch.device("cpu"), key=key)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", {0: 1.0, 0.25: 0.8535533905932737, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0.0}),
        ("step", {0: 1, 0.2999: 1, 0.3: 0.1, 0.5999: 0.1, 0.6: 0.01, 0.7999: 0.01, 0.8: 0.001, 1.0: 0.001}),
        ("constant", {0: 1, 0.5: 1, 1.0: 1}),
    ],
)
def test_learning_rate_by_hand(schedule, factors):
    for progress, factor in factors.items():
        settings = TrainingSettings(learning_rate_schedule=schedule)
        assert learning_rate_factor(settings, progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("epochs", [240, 480, 960])
def test_milestones_scale_with_prolonged_training(epochs):
    """CRD's schedule: 150, 180 and 210 of 240 epochs; 300, 360 and 420 of 480 (arXiv 2012.02909)."""
    settings = TrainingSettings(learning_rate_schedule="step", learning_rate_milestones=(0.625, 0.75, 0.875))
    factors = [learning_rate_factor(settings, epoch / epochs) for epoch in range(epochs)]
    drops = [epoch for epoch in range(1, epochs) if factors[epoch] < factors[epoch - 1]]
    assert drops == [150 * epochs // 240, 180 * epochs // 240, 210 * epochs // 240]


def test_learning_rates_never_rise():
    for schedule in ("cosine", "step", "constant"):
        settings = TrainingSettings(learning_rate_schedule=schedule)
        factors = [learning_rate_factor(settings, i / 200) for i in range(201)]
        assert factors == sorted(factors, reverse=True) and factors[0] == 1 and factors[-1] >= 0


def quadratic(settings: TrainingSettings, steps: int, rate: float) -> torch.Tensor:
    """Minimise the mean of (w - c)^2 / 2 with the optimiser that settings ask for."""
    network = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    optimizer = new_optimizer(network, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for _ in range(steps):
        optimizer.zero_grad()
        ((network.weight - torch.tensor([0.3, 0.1, -4.0])) ** 2 / 2).sum().backward()
        optimizer.step()
    return network.weight.detach().flatten()


def test_sgd_is_nesterov_with_decay_on_every_parameter():
    rate, momentum, decay = 0.05, 0.8, 0.01
    w, c, v = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 0.1, -4.0]).double(), torch.zeros(3).double()
    for _ in range(4):
        gradient = (w - c) + decay * w
        v = momentum * v + gradient
        w = w - rate * (gradient + momentum * v)
    found = quadratic(TrainingSettings(momentum=momentum, weight_decay=decay), 4, rate)
    assert torch.allclose(found, w, rtol=0, atol=1e-12)


def test_sgd_without_momentum():
    found = quadratic(TrainingSettings(momentum=0.0, weight_decay=0.0), 3, 0.1)
    w, c = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 0.1, -4.0]).double()
    assert torch.allclose(found, c + (w - c) * 0.9**3, rtol=0, atol=1e-12)


def test_adam_adds_the_decay_to_the_gradient():
    rate, decay, (b1, b2) = 0.01, 0.1, (0.9, 0.999)
    w, c = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 0.1, -4.0]).double()
    m, s = torch.zeros(3).double(), torch.zeros(3).double()
    for t in range(1, 5):
        gradient = (w - c) + decay * w
        m, s = b1 * m + (1 - b1) * gradient, b2 * s + (1 - b2) * gradient**2
        w = w - rate * (m / (1 - b1**t)) / ((s / (1 - b2**t)).sqrt() + 1e-8)
    found = quadratic(TrainingSettings(optimizer="adam", weight_decay=decay), 4, rate)
    assert torch.allclose(found, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_parameter_is_optimised_and_decays(optimizer):
    for role, network in (one := learner(f"training.optimizer={optimizer}")).networks.items():
        groups = one.optimizers[role].param_groups
        held = {id(parameter) for group in groups for parameter in group["params"]}
        assert held == {id(parameter) for parameter in network.parameters()}
        assert all(group["weight_decay"] == 5e-4 for group in groups)


def test_initial_weights_follow_from_seed_role_and_key():
    state = torch.get_rng_state()
    one = learner()
    torch.manual_seed(123)
    assert same_tree(one.tree(), learner().tree())
    for other in (learner("seed=1"), learner(key=1)):
        assert not torch.equal(stem(other, Role.STUDENT), stem(one, Role.STUDENT))
    assert not torch.equal(stem(one, Role.STUDENT), stem(one, Role.TEACHER))
    assert torch.equal(stem(learner(roles=(Role.STUDENT,)), Role.STUDENT), stem(one, Role.STUDENT))
    torch.set_rng_state(state)
    learner()
    assert torch.equal(torch.get_rng_state(), state), "somebody else's random numbers were used up"


def stem(one: Learner, role: Role) -> torch.Tensor:
    return one.networks[role].conv1.weight


def test_networks_are_channels_last_before_and_after_loading():
    one = learner("student.model=resnet8x4")
    one.load(learner("student.model=resnet8x4", key=1).tree(), where="here")
    for network in one.networks.values():
        weight = network.stage1[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_loading_replaces_everything():
    one, other = learner(), learner("seed=1")
    other.epoch = 7
    for network in one.networks.values():  # buffers and optimiser state that must go
        network(torch.randn(8, 1, 8, 8)).sum().backward()
    for optimizer in one.optimizers.values():
        optimizer.step()
    one.load(other.tree(), where="here")
    assert same_tree(one.tree(), other.tree())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"student.model": "resnet14"}, r"student: of another architecture: 36 .*stage1.1.bn1.*got.*expected nothing"),
        ({"student.model": "resnet8x4"}, r"student: of another architecture: 6 .*shortcut.0.*got \(64, 32, 1, 1\)"),
        ({"classes": 7}, r"teacher: of another architecture: 2 .*classifier.*got \(7, 64\); expected \(10, 64\)"),
        ({"roles": (Role.STUDENT,)}, r"holds networks of \['student'\]; expected \['student', 'teacher'\]"),
    ],
)
def test_loading_another_learners_state(other, said):
    one = learner()
    names = [f"{key}={value}" for key, value in other.items() if "." in key]
    other = learner(*names, **{key: value for key, value in other.items() if "." not in key})
    with pytest.raises(CheckpointError, match=f"states/000-0001: {said}"):
        one.load(other.tree(), where="states/000-0001")


@pytest.mark.parametrize("tree", [{}, {"weights": torch.ones(1)}, {"networks": {}}])
def test_loading_what_is_no_learners_state(tree):
    with pytest.raises(CheckpointError, match=r"here: not a training's state, lacks .*optimizers"):
        learner().load(tree, where="here")


def test_weights_of_another_architecture_change_nothing():
    network, other = learner().networks[Role.STUDENT], learner(classes=7).networks[Role.STUDENT]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match="here"):
        load_weights(network, other.state_dict(), where="here")
    assert same_tree(dict(network.state_dict()), before)


def test_cosine_integrates_to_a_half():
    """The mean learning rate of a whole training is half the base rate, whatever its length."""
    mean = sum(learning_rate_factor(TrainingSettings(), (i + 0.5) / 1000) for i in range(1000)) / 1000
    assert mean == pytest.approx(0.5, abs=1e-6)
