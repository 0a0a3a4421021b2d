"""Methods with features, state and peers: two workers end where one does, and with the same bits as each other."""

from typing import Any

import numpy as np
import pytest
import torch
from sharding_cases import in_group
from training_helpers import some_policy, tiny_settings

from rolekd_ray.roles import Role
from rolekd_ray.training.batchnorm import share_batchnorm
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.learner import new_learner
from rolekd_ray.training.sharding import ALONE, Sharding

CPU = torch.device("cpu")
EVERYTHING = (
    "distill.losses={cross_entropy: 1, attention: 10, similarity: 10, rkd: 0.1, hint: 0.1, vid: 0.1, one: 1}",
    "teacher.model=wrn_10_2",  # of other widths, so that hint has a regressor
)
CASES = {
    "everything": (EVERYTHING, (Role.STUDENT,)),
    "everything, clipped": ((*EVERYTHING, "distill.clip_to_task=true"), (Role.STUDENT,)),
    "peers": (("distill.losses={cross_entropy: 1, mutual: 1}", "distill.view_mode=independent"), tuple(Role)),
}


def trained(overrides: tuple[str, ...], roles: tuple[Role, ...], sharding: Sharding) -> dict[str, Any]:
    """An epoch of batches of 15, 15 and 3 images, for two workers dealt out unevenly, as finals and slots do it."""
    settings = tiny_settings(
        "training.precision=float32", "training.learning_rate=0.005", "training.batch_size=15", *overrides
    )
    data = open_training_data(settings.data, train=33)
    learner = new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=0)
    teacher = new_learner(settings, (Role.TEACHER,), num_classes=10, channels=1, device=CPU, key=1)
    frozen = None if Role.TEACHER in roles else teacher.networks[Role.TEACHER]
    trainer = new_trainer(settings, data, settings.search_space(), CPU, frozen, sharding)
    trainer.equip(learner, 0)
    for network in learner.networks.values():
        share_batchnorm(network, "sync", sharding)
    policies = {role: [(1.0, some_policy(settings, role))] for role in Role}
    losses = trainer.train(learner, lambda role, epoch: policies[role], end_epoch=1, total_epochs=1, stream="a")
    tree = learner.tree()
    state = {f"{role}.{name}": value for role, network in tree["networks"].items() for name, value in network.items()}
    state |= {f"losses.{name}": value for name, value in tree.get("losses", {}).items()}
    return {"losses": losses, "state": {name: value.numpy().copy() for name, value in state.items()}}


def all_cases(sharding: Sharding) -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    return {name: trained(*case, sharding) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def found() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return all_cases(ALONE), in_group(2, all_cases)


@pytest.mark.parametrize("case", CASES)
def test_two_workers_end_where_one_does(found, case):
    alone, (first, _) = found
    assert first[case]["losses"] == pytest.approx(alone[case]["losses"], rel=2e-3)
    for name, value in alone[case]["state"].items():
        np.testing.assert_allclose(first[case]["state"][name], value, rtol=1e-2, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_all_workers_end_with_the_same_bits(found, case):
    _, (first, second) = found
    names = first[case]["state"]
    assert names.keys() == second[case]["state"].keys()
    parts = ("one.branches", "one.gate", "vid", "regressors.hint") if case != "peers" else ("teacher.", "student.")
    assert all(any(part in name for name in names) for part in parts)
    for name, value in names.items():
        assert (value == second[case]["state"][name]).all(), name
    assert first[case]["losses"] == second[case]["losses"]
