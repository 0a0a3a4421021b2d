"""Chains of agents over several workers: a group ends where one worker alone does, learned agent and gate included."""

from typing import Any

import numpy as np
import pytest
import torch
from sharding_cases import in_group
from torch import nn
from training_helpers import some_policy, tiny_settings

from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training import epochs
from rolekd_ray.training.batchnorm import share_batchnorm
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.learner import new_learner
from rolekd_ray.training.sharding import ALONE, Sharding

CPU = torch.device("cpu")
BRANCHES = "distill.branches={}"
# A student that errs much is done below 5, and the augmentor's turn lasts one: phases change within the few steps
GATE = "agents.student.learned={lower: 50, upper: 100, max_steps: 1, learning_rate: 0.02}"
COEVOLVE = tuple(Role)


def chain(text: str, *more: str, role: str = "student") -> tuple[str, ...]:
    return (f"agents.{role}.chain={text}", *more)


def picking(criterion: str, scope: str = "pool", *more: str) -> tuple[str, ...]:
    pick = f"agents.student.pick={{runs: 3, fraction: 0.4, criterion: {criterion}, scope: {scope}}}"
    return chain("policy+cutmix+pick", pick, *more)


CASES: dict[str, tuple[tuple[str, ...], tuple[Role, ...]]] = {
    "mixup": (chain("mixup"), (Role.STUDENT,)),
    "legacy cutmix, branches": (chain("cutmix", "agents.student.cutmix.legacy=true", BRANCHES), (Role.STUDENT,)),
    "teacher entropy": (picking("teacher_entropy"), (Role.STUDENT,)),
    "student entropy, anchor": (picking("student_entropy", "anchor"), (Role.STUDENT,)),
    "divergence, branches": (picking("divergence", "pool", BRANCHES), (Role.STUDENT,)),
    "dissimilarity, teacher_clean": (picking("dissimilarity", "anchor", "distill.view_mode=teacher_clean"),
                                     (Role.STUDENT,)),
    "learned": (chain("learned", GATE), (Role.STUDENT,)),
    "learned, mixed, branches": (chain("policy+learned+mixup", GATE, BRANCHES), (Role.STUDENT,)),
    "everything, co-evolving, independent": (
        (*chain("policy+learned+cutmix+pick", GATE, "distill.view_mode=independent"),
         *chain("randaugment+mixup+pick", role="teacher")), COEVOLVE),
    "shared_teacher": ((*chain("learned+pick", GATE.replace("student", "teacher"), role="teacher"),
                        "distill.view_mode=shared_teacher"), COEVOLVE),
}  # fmt: skip


def sure_of_itself(network: nn.Module) -> None:
    """Fresh networks say the same of every image: rounding would decide what is picked, and where Adam steps."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        layers[-1].weight.mul_(20)


def trained(overrides: tuple[str, ...], roles: tuple[Role, ...], sharding: Sharding) -> dict[str, Any]:
    """An epoch of batches of 7, 7 and 2 images, each for two workers dealt out unevenly or one by one."""
    settings = tiny_settings(
        "training.precision=float32", "training.learning_rate=0.001", "training.batch_size=7", *overrides
    )
    data = open_training_data(settings.data, train=16)
    learner = new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=0)
    teacher = new_learner(settings, (Role.TEACHER,), num_classes=10, channels=1, device=CPU, key=1)
    for network in (*learner.networks.values(), *teacher.networks.values()):
        sure_of_itself(network)
    frozen = None if Role.TEACHER in roles else teacher.networks[Role.TEACHER]
    trainer = new_trainer(settings, data, settings.search_space(), CPU, frozen, sharding)
    trainer.equip(learner, 0)
    for network in learner.networks.values():
        share_batchnorm(network, "sync", sharding)
    policies = {role: [(1.0, Policy(some_policy(settings, role).settings))] for role in Role}
    at = lambda role, epoch: policies[role]  # noqa: E731
    losses = trainer.train(learner, at, end_epoch=1, total_epochs=2, stream="a")
    losses |= trainer.view_statistics(learner, at, 0)
    tree = learner.tree()
    state = {f"{role}.{name}": value for role, network in tree["networks"].items() for name, value in network.items()}
    plain: dict[str, Any] = {}
    if learner.learned is not None:
        state |= {f"learned.{name}": value for name, value in tree["learned"]["augmentor"].items()}
        plain = {"gate": tree["learned"]["gate"], "steps": tree["learned"]["steps"]}
    return {"losses": losses, "state": {name: value.numpy().copy() for name, value in state.items()}, "plain": plain}


def all_cases(sharding: Sharding) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    return {name: trained(*case, sharding) for name, case in CASES.items()}


def vae_of_a_worker(sharding: Sharding) -> float:
    """As if fits differed, which on GPUs they do."""
    settings = tiny_settings()
    trainer = new_trainer(settings, open_training_data(settings.data, train=16), settings.search_space(), CPU, None,
                          sharding)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "fitted_vae", lambda source, seed: {"spread": torch.tensor(1.0 + sharding.rank)})
        return trainer._vae["spread"].item()


def test_all_workers_have_the_first_ones_vae():
    assert in_group(2, vae_of_a_worker) == [1.0, 1.0]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return all_cases(ALONE)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def group(request) -> list[dict[str, Any]]:
    return in_group(request.param, all_cases)


@pytest.mark.parametrize("case", CASES)
def test_a_group_ends_where_one_worker_does(alone, group, case):
    for found in group:
        assert found[case]["losses"] == pytest.approx(alone[case]["losses"], rel=1e-4, abs=1e-5)
        assert found[case]["plain"] == alone[case]["plain"]
        assert found[case]["state"].keys() == alone[case]["state"].keys()
        for name, value in alone[case]["state"].items():
            np.testing.assert_allclose(found[case]["state"][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_all_workers_end_with_the_same_bits(group, case):
    for other in group[1:]:
        assert other[case]["losses"] == group[0][case]["losses"] and other[case]["plain"] == group[0][case]["plain"]
        for name, value in group[0][case]["state"].items():
            assert (value == other[case]["state"][name]).all(), name


@pytest.mark.parametrize("case", [case for case in CASES if "learned" in str(CASES[case])])
def test_both_phases_were_trained(alone, case):
    steps = alone[case]["plain"]["gate"]["steps"]
    assert steps["augmentor"] == alone[case]["plain"]["steps"] > 0 and steps["student"] > 0
