"""Trainings whose losses keep a state: whole or in parts through checkpoints, it is the same training."""

import pytest
import torch
from training_helpers import same_tree, some_policy, tiny_settings

from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import load_checkpoint, save_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import new_trainer
from rolekd_ray.training.learner import Learner, new_learner

CPU = torch.device("cpu")
EPOCHS = 4


def policies(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    return [(1.0, Policy(some_policy(tiny_settings(), role, epoch).settings))]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("crd", id="crd: banks, Z, negatives"),
        pytest.param("mhgd", id="mhgd: attention, then at rest"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("hint", "review", "svd", "vid")),
    ],
)
def test_in_parts_through_checkpoints_it_is_the_same_to_the_last_bit(name, tmp_path):
    settings = tiny_settings(f"distill.losses={{cross_entropy: 1, {name}: 0.5}}", "student.model=wrn_10_2")
    data = open_training_data(settings.data, train=40)

    def fresh(*roles: Role) -> Learner:
        return new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=0)

    trainer = new_trainer(settings, data, settings.search_space(), CPU, fresh(Role.TEACHER).networks[Role.TEACHER])
    whole = fresh(Role.STUDENT)
    trainer.train(whole, policies, end_epoch=EPOCHS, total_epochs=EPOCHS, stream="a")
    for epoch in range(EPOCHS):
        part = fresh(Role.STUDENT)
        if epoch:
            trainer.equip(part, "another state at first")
            part.load(load_checkpoint(tmp_path / str(epoch))[0], where="test")
        trainer.train(part, policies, end_epoch=epoch + 1, total_epochs=EPOCHS, stream="a")
        save_checkpoint(tmp_path / str(epoch + 1), part.tree(), {})
    assert same_tree(part.tree(), whole.tree())
    assert whole.losses is not None and whole.losses.state_dict()
