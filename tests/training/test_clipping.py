"""The gradient of distillation is cut to the length of the labels', parameter by parameter."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sharding_cases import in_group
from torch import Tensor, nn
from training_helpers import same_tree, tiny_settings

from rolekd_ray.config import Settings
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.clipping import clipped_backward
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.learner import Learner, new_learner
from rolekd_ray.training.sharding import ALONE, Sharding

CPU = torch.device("cpu")


class Two(nn.Module):
    """Features and logits; float64, so that only a wrong formula can make a difference."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.head, self.unused = nn.Linear(4, 3), nn.Linear(3, 5), nn.Linear(2, 2)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x).tanh()
        return features, self.head(features)


def step(sharding: Sharding, epoch: int, scale: float, task_weight: float = 1.0) -> dict[str, Tensor]:
    """Gradients of all parameters after one clipped backward pass; `regressor.weight` among them."""
    network = Two()
    regressor = nn.Linear(3, 3, bias=False).double()
    with torch.no_grad():
        regressor.weight.copy_(torch.arange(9.0, dtype=torch.float64).view(3, 3) / 10)
    generator = torch.Generator().manual_seed(1)
    x, wanted = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    features, logits = (sharding.gather(part, 7) for part in network(sharding.rows(x)))
    task = task_weight * F.cross_entropy(logits, labels)
    # Only `body` and the regressor are distilled: `head` has a gradient of the labels alone
    distillation = scale * (regressor(features) - wanted[:, :3]).square().mean()
    clipped_backward(list(network.parameters()), task, distillation, epoch, sharding)
    named = {**dict(network.named_parameters()), "regressor.weight": regressor.weight}
    return {name: parameter.grad.clone() for name, parameter in named.items()}


def separate(epoch: int, scale: float, task_weight: float = 1.0) -> dict[str, Tensor]:
    """The same by definition: both gradients by finite formulas, then one loop over parameters and numbers."""
    network = Two()
    regressor = (torch.arange(9.0, dtype=torch.float64).view(3, 3) / 10).requires_grad_()
    generator = torch.Generator().manual_seed(1)
    x, wanted = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    features, logits = network(x)
    task = task_weight * -logits.log_softmax(1)[torch.arange(7), labels].sum() / 7
    distillation = scale * ((features @ regressor.T - wanted[:, :3]) ** 2).sum() / 21
    names = [name for name, _ in network.named_parameters()]
    places = list(network.parameters())
    own = torch.autograd.grad(task, places, retain_graph=True, allow_unused=True)
    other = torch.autograd.grad(distillation, [*places, regressor], allow_unused=True)
    found = {"regressor.weight": other[-1]}
    for name, place, a, b in zip(names, places, own, other[:-1], strict=True):
        a, b = (torch.zeros_like(place) if value is None else value for value in (a, b))
        limit = math.sqrt(math.fsum(v * v for v in a.flatten().tolist())) / (1 + math.exp(-epoch))
        norm = math.sqrt(math.fsum(v * v for v in b.flatten().tolist()))
        found[name] = a + (b if norm <= limit else b * (limit / norm))
    return found


@pytest.mark.parametrize("epoch", [0, 1, 40])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 1e6])
def test_against_a_loop_over_parameters(epoch, scale):
    found, expected = step(ALONE, epoch, scale), separate(epoch, scale)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14, msg=name)


def test_half_of_the_labels_length_in_the_first_epoch_and_regressors_uncut():
    found, small, of_task = step(ALONE, 0, 1e6), step(ALONE, 0, 1e-30), step(ALONE, 0, 0.0)
    for name in ("body.weight", "body.bias"):
        of_distillation = found[name] - of_task[name]
        assert of_distillation.norm().item() == pytest.approx(0.5 * of_task[name].norm().item(), rel=1e-9)
    assert torch.equal(found["head.weight"], of_task["head.weight"])
    torch.testing.assert_close(found["regressor.weight"], 1e36 * small["regressor.weight"], rtol=1e-12, atol=0)
    assert not found["unused.weight"].any()


def test_where_the_labels_ask_for_nothing_distillation_gets_nothing():
    found = step(ALONE, 3, 1.0, task_weight=0.0)
    assert not any(value.any() for name, value in found.items() if name != "regressor.weight")
    assert found["regressor.weight"].any()


def test_without_a_distillation_loss_it_is_the_plain_gradient():
    network, x = Two(), torch.ones(2, 4, dtype=torch.float64)
    task = F.cross_entropy(network(x)[1], torch.tensor([0, 1]))
    clipped_backward(list(network.parameters()), task, None, 0, ALONE)
    found = [p.grad.clone() for p in network.parameters()]
    expected = torch.autograd.grad(
        F.cross_entropy(network(x)[1], torch.tensor([0, 1])), list(network.parameters()), allow_unused=True
    )
    for gradient, wanted in zip(found, expected, strict=True):
        assert torch.equal(gradient, torch.zeros_like(gradient) if wanted is None else wanted)


def both_sizes(sharding: Sharding) -> dict[Any, dict[str, Any]]:
    found = {(epoch, scale): step(sharding, epoch, scale) for epoch, scale in ((0, 1.0), (2, 1e6), (2, 1e-6))}
    return {key: {name: value.numpy() for name, value in case.items()} for key, case in found.items()}


def test_two_workers_cut_the_whole_batchs_gradients():
    one = both_sizes(ALONE)
    first, second = in_group(2, both_sizes)
    for key, gradients in one.items():
        for name, value in gradients.items():
            assert first[key][name] == pytest.approx(value, rel=1e-10, abs=1e-13), (key, name)
            assert (first[key][name] == second[key][name]).all(), (key, name)


# ---- in the epoch loop


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return open_training_data(tiny_settings().data, train=20)


def trained(digits: TrainingData, *overrides: str) -> Learner:
    """One step of a student under a frozen teacher: 20 images, one batch."""
    settings: Settings = tiny_settings("training.precision=float32", "training.weight_decay=0", *overrides)
    learner = new_learner(settings, (Role.STUDENT,), num_classes=10, channels=1, device=CPU, key=0)
    teacher = new_learner(settings, (Role.TEACHER,), num_classes=10, channels=1, device=CPU, key=1)
    trainer = new_trainer(settings, digits, settings.search_space(), CPU, teacher.networks[Role.TEACHER])
    trainer.train(learner, lambda role, epoch: [(1.0, Policy())], end_epoch=1, total_epochs=1, stream="a")
    return learner


CLIPPED = "distill.clip_to_task=true"


def weights(learner: Learner) -> dict[str, Tensor]:
    return learner.networks[Role.STUDENT].state_dict()


def test_the_epoch_loop_cuts(digits):
    def moved(weight: float, *overrides: str) -> float:
        losses = f"distill.losses={{cross_entropy: 1, hinton: {weight:g}}}"
        start = trained(digits, losses, *overrides, "training.learning_rate=1e-9")
        end = trained(digits, losses, *overrides, "training.learning_rate=1e-3")
        return max((weights(end)[name] - value).norm().item() for name, value in dict(
            start.networks[Role.STUDENT].named_parameters()).items())  # fmt: skip

    labels = moved(0, CLIPPED)
    assert moved(1e4) > 100 * labels
    assert moved(1e4, CLIPPED) <= 1.51 * labels, "half of the labels' in epoch 0, per parameter"


def test_weights_of_distillation_count(digits):
    def at(weight: float) -> dict[str, Tensor]:
        return weights(trained(digits, f"distill.losses={{cross_entropy: 1, hinton: {weight:g}}}", CLIPPED))

    assert not same_tree(at(0.001), at(0.002))


def test_as_published_the_losses_of_a_sum_have_their_weights(digits):
    """Role-kd's sum is MHGD + 50 RKD + SVD before it is clipped; only what multiplies the whole sum is inert there."""

    def at(weight: float, compat: str) -> dict[str, Tensor]:
        losses = f"distill.losses={{cross_entropy: 1, similarity: 1, attention: {weight:g}}}"  # no options in compat
        return weights(trained(digits, losses, CLIPPED, f"distill.compat={compat}"))

    assert same_tree(at(50, "rk2020"), at(50, "corrected"))
    assert not same_tree(at(50, "rk2020"), at(1, "rk2020"))


def test_hinton_as_published_has_no_squared_temperature(digits):
    def at(weight: float, compat: str) -> dict[str, Tensor]:
        losses = f"distill.losses={{cross_entropy: 1, hinton: {weight:g}}}"
        return weights(trained(digits, losses, "distill.temperature=2", f"distill.compat={compat}"))

    published, ours = at(4, "rk2020"), at(1, "corrected")
    for name, value in ours.items():
        torch.testing.assert_close(published[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert not same_tree(at(1, "rk2020"), ours)
