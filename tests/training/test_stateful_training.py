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


@pytest.mark.parametrize("name", ["vid", "review"])
def test_what_a_method_keeps_rests_while_its_evolved_weight_is_0(name, tmp_path):
    """Networks, momentum and BatchNorm of the loss; then they go on from there, through a checkpoint as without."""
    settings = tiny_settings(
        f"distill.losses={{cross_entropy: 1, {name}: 0.5}}", "student.model=wrn_10_2", "training.weight_decay=0.1"
    )
    data = open_training_data(settings.data, train=20)
    weight_of_epoch = [0.5, 0.0, 0.5]

    def weighted(role: Role, epoch: int) -> list[tuple[float, Policy]]:
        return [(1.0, Policy((), {f"losses.{name}": weight_of_epoch[epoch]}))]

    def fresh(role: Role) -> Learner:
        return new_learner(settings, (role,), num_classes=10, channels=1, device=CPU, key=0)

    trainer = new_trainer(settings, data, settings.search_space(), CPU, fresh(Role.TEACHER).networks[Role.TEACHER])
    whole, trees = fresh(Role.STUDENT), []
    for epoch in range(3):
        trainer.train(whole, weighted, end_epoch=epoch + 1, total_epochs=3, stream="a")
        save_checkpoint(tmp_path / str(epoch), whole.tree(), {})
        trees.append(load_checkpoint(tmp_path / str(epoch))[0])
    of_network = len(list(whole.networks[Role.STUDENT].parameters()))
    kept = [
        (tree["losses"], {place: value for place, value in tree["optimizers"]["student"]["state"].items()
                          if place >= of_network})
        for tree in trees
    ]  # fmt: skip
    assert kept[0][1], "momentum of the loss's own networks"
    assert same_tree(kept[1], kept[0]) and not same_tree(kept[2][0], kept[1][0])
    part = fresh(Role.STUDENT)
    trainer.equip(part, "another state at first")
    part.load(trees[1], where="test")
    trainer.train(part, weighted, end_epoch=3, total_epochs=3, stream="a")
    assert same_tree(part.tree(), whole.tree())
