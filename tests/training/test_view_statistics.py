"""View statistics against loops in Python; what they may not touch."""

import math
from dataclasses import replace

import pytest
import torch
from training_helpers import same_tree, some_policy, tiny_settings

from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.learner import Learner, new_learner
from rolekd_ray.training.view_statistics import roles_seen

CPU = torch.device("cpu")
PLAIN = "base_augmentation={crop_padding_pixels: 0, flip: false, cutout_pixels: 0}"


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return open_training_data(tiny_settings().data, train=60)


def sharp(seed: int) -> torch.nn.Module:
    """A network that is not sure of everything, nor of nothing."""
    network = build_network("resnet8", num_classes=10, channels=1, seed=seed)
    with torch.no_grad():
        [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1].weight.mul_(30)
    return network


def made(data: TrainingData, *overrides: str) -> tuple[Trainer, Learner]:
    settings = tiny_settings("training.precision=float32", "teacher.model=resnet8", *overrides)
    trainer = replace(new_trainer(settings, data, settings.search_space(), CPU, None), frozen_teacher=sharp(9))
    learner = new_learner(settings, (Role.STUDENT,), num_classes=10, channels=1, device=CPU, key=0)
    learner.networks[Role.STUDENT].load_state_dict(sharp(3).state_dict())
    return trainer, learner


def chances(network: torch.nn.Module, view: torch.Tensor) -> list[list[float]]:
    with torch.no_grad():
        logits = network.eval()(view).double().tolist()
    rows = [[math.exp(value - max(row)) for value in row] for row in logits]
    return [[value / sum(row) for value in row] for row in rows]


def kl(ones: list[list[float]], others: list[list[float]]) -> float:
    rows = [sum(p * math.log(p / q) for p, q in zip(one, other) if p > 0) for one, other in zip(ones, others)]
    return sum(rows) / len(rows)


SEEN = {
    "shared_student": ["student"],
    "shared_teacher": ["teacher"],
    "teacher_clean": ["student"],
    "independent": ["teacher", "student"],
}


@pytest.mark.parametrize("mode, seen", list(SEEN.items()))
def test_they_are_what_loops_in_python_find(digits, mode, seen):
    trainer, learner = made(digits, f"distill.view_mode={mode}", PLAIN)
    policies = {role: [(1.0, some_policy(trainer.settings, role))] for role in Role}
    found = trainer.view_statistics(learner, lambda role, epoch: policies[role], 2)
    networks = {"teacher": trainer.frozen_teacher, "student": learner.networks[Role.STUDENT]}
    places, views = digits.train.sort().values, trainer.views
    images = digits.image_set.images[places]
    expected = {}
    for role in map(Role, seen):
        view = views.view(views.agent(policies[role]), images, places, role=role, epoch=2)
        on_view = {name: chances(network, view) for name, network in networks.items()}
        for name, rows in on_view.items():
            clean = chances(networks[name], views.clean(images))
            kept = [row.index(max(row)) == before.index(max(before)) for row, before in zip(rows, clean)]
            expected[f"{role}_view/{name}_confidence"] = sum(map(max, rows)) / len(rows)
            expected[f"{role}_view/{name}_kept"] = sum(kept) / len(kept)
            expected[f"{role}_view/{name}_change"] = kl(clean, rows)
        expected[f"{role}_view/divergence"] = kl(on_view["teacher"], on_view["student"])
    assert found == pytest.approx(expected, rel=1e-4)
    assert all(value > 0.01 for value in found.values()), "else nothing was compared"


def test_a_view_that_is_the_clean_image_changes_nothing(digits):
    trainer, learner = made(digits, "agents.student.chain=none", PLAIN)
    found = trainer.view_statistics(learner, lambda role, epoch: [(1.0, some_policy(trainer.settings, role))], 0)
    for name in ("teacher", "student"):
        assert found[f"student_view/{name}_kept"] == 1
        assert found[f"student_view/{name}_change"] == pytest.approx(0, abs=1e-6)


def test_nothing_that_is_trained_changes_and_no_generator_is_used(digits):
    trainer, learner = made(digits, "agents.student={chain: policy+learned+cutmix+pick}")
    trainer.equip(learner, 0)
    learner.networks[Role.STUDENT].train()
    before = {name: value.clone() for name, value in learner.networks[Role.STUDENT].state_dict().items()}
    agent, generator = learner.learned.tree(), torch.get_rng_state()
    policies_at = lambda role, epoch: [(1.0, some_policy(trainer.settings, role))]  # noqa: E731
    found = trainer.view_statistics(learner, policies_at, 1)
    assert found == trainer.view_statistics(learner, policies_at, 1)
    assert found != trainer.view_statistics(learner, policies_at, 2), "views are those of the epoch"
    assert all(torch.equal(value, before[name]) for name, value in learner.networks[Role.STUDENT].state_dict().items())
    assert learner.networks[Role.STUDENT].training and torch.equal(generator, torch.get_rng_state())
    assert same_tree(agent, learner.learned.tree())
    assert all(parameter.grad is None for parameter in learner.networks[Role.STUDENT].parameters())


def test_whose_views_are_looked_at():
    both, student, teacher = frozenset(Role), frozenset({Role.STUDENT}), frozenset({Role.TEACHER})
    own = {Role.TEACHER: Role.TEACHER}
    assert all(roles_seen(mode, teacher) == own for mode in ("shared_student", "teacher_clean"))
    assert roles_seen("shared_teacher", student) == own
    assert roles_seen("shared_student", both) == own | {Role.STUDENT: Role.STUDENT}
    # A teacher that is frozen sees its own view mixed as the student's is; one that learns, its own whole view
    assert roles_seen("independent", student) == {Role.TEACHER: Role.STUDENT, Role.STUDENT: Role.STUDENT}
    assert roles_seen("independent", both) == own | {Role.STUDENT: Role.STUDENT}
