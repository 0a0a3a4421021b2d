import json

import pytest
import torch
from training_helpers import same_tree, tiny_settings

from rolekd_ray.errors import CheckpointError
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import save_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.networks import describe_networks, load_network

MODELS = {Role.TEACHER: "resnet14", Role.STUDENT: "resnet8"}


@pytest.fixture(scope="module")
def digits():
    return open_training_data(tiny_settings().data, train=60)


@pytest.fixture
def networks():
    """Networks whose BatchNorm buffers are not those of fresh ones."""
    found = {role: build_network(model, num_classes=10, channels=1, seed=1) for role, model in MODELS.items()}
    for network in found.values():
        network.train()(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return found


def saved(tmp_path, digits, networks):
    models = {role: MODELS[role] for role in networks}
    about = describe_networks(models, digits.image_set, digits.statistics, tiny_settings().data)
    tree = {"networks": {str(role): network.state_dict() for role, network in networks.items()}}
    save_checkpoint(tmp_path / "networks", tree, about)
    return tmp_path / "networks"


def test_the_description_is_plain_data_that_says_how_to_feed_the_network(digits):
    about = json.loads(json.dumps(describe_networks(MODELS, digits.image_set, digits.statistics, tiny_settings().data)))
    assert about["models"] == {"teacher": "resnet14", "student": "resnet8"}
    assert (about["num_classes"], about["channels"], about["image_size"]) == (10, 1, [8, 8])
    assert len(about["class_names"]) == 10 and about["data"]["source"] == "digits"
    assert torch.equal(torch.tensor(about["mean"]), digits.statistics[0])
    assert torch.equal(torch.tensor(about["std"]), digits.statistics[1])


def test_each_roles_network_comes_back_in_evaluation_mode(tmp_path, digits, networks):
    folder = saved(tmp_path, digits, networks)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for role, network in networks.items():
        found, about = load_network(folder, role, model=MODELS[role], num_classes=10, channels=1)
        assert not any(module.training for module in found.modules())
        assert same_tree(dict(found.state_dict()), dict(network.state_dict()))
        assert torch.equal(found(images), network.eval()(images))
        assert about["models"][role] == MODELS[role]


def test_a_quantised_student_comes_back_quantised(tmp_path, digits):
    network = build_network("resnet8_w2a2", num_classes=10, channels=1, seed=1)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    network.train()(images)
    about = describe_networks({Role.STUDENT: "resnet8_w2a2"}, digits.image_set, digits.statistics, tiny_settings().data)
    save_checkpoint(tmp_path / "net", {"networks": {"student": network.state_dict()}}, about)
    found, _ = load_network(tmp_path / "net", Role.STUDENT, model="resnet8_w2a2")
    assert same_tree(dict(found.state_dict()), dict(network.state_dict()))
    assert torch.equal(found(images), network.eval()(images))
    plain = build_network("resnet8", num_classes=10, channels=1).eval()
    plain.load_state_dict(network.state_dict())
    assert not torch.allclose(found(images), plain(images), atol=0.01)
    with pytest.raises(CheckpointError, match="of another architecture: model: got 'resnet8_w2a2'; expected 'resnet8'"):
        load_network(tmp_path / "net", Role.STUDENT, model="resnet8")


def test_a_single_network_serves_either_role(tmp_path, digits, networks):
    folder = saved(tmp_path, digits, {Role.TEACHER: networks[Role.TEACHER]})
    for role in Role:
        found, _ = load_network(folder, role)
        assert same_tree(dict(found.state_dict()), dict(networks[Role.TEACHER].state_dict()))


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"model": "resnet20"}, "model: got 'resnet14'; expected 'resnet20'"),
        ({"num_classes": 100}, "classes: got 10; expected 100"),
        ({"channels": 3}, "channels: got 1; expected 3"),
    ],
)
def test_not_the_expected_network(tmp_path, digits, networks, expected, said):
    folder = saved(tmp_path, digits, networks)
    with pytest.raises(CheckpointError, match=f"{folder}: of another architecture: {said}"):
        load_network(folder, Role.TEACHER, **expected)


def test_weights_that_do_not_fit_the_named_model(tmp_path, digits, networks):
    folder = saved(tmp_path, digits, {Role.TEACHER: networks[Role.STUDENT]})  # says resnet14
    with pytest.raises(CheckpointError, match=f"{folder}: of another architecture"):
        load_network(folder, Role.TEACHER)


@pytest.mark.parametrize("tree", [{}, {"weights": torch.ones(2)}, {"networks": {}}, {"networks": {"a": {}, "b": {}}}])
def test_a_checkpoint_without_the_network(tmp_path, tree):
    save_checkpoint(tmp_path / "other", tree, {"models": {}})
    with pytest.raises(CheckpointError, match=r"other: holds networks of .*; expected one of the student"):
        load_network(tmp_path / "other", Role.STUDENT)


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_network(tmp_path / "gone", Role.STUDENT)
