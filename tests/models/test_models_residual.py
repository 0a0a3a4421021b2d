"""A student and the assistant that corrects it."""

import pytest
import torch
from torch import nn

from rolekd_ray.errors import ConfigError
from rolekd_ray.models import build_network, check_network, fold_batchnorm
from rolekd_ray.models.residual import ResidualSum

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def built(name: str = "resnet14+resnet8") -> ResidualSum:
    network = build_network(name, num_classes=10, channels=1, seed=3)
    assert isinstance(network, ResidualSum)
    return network


def test_logits_add():
    network = built().eval()
    parts = network.student, network.assistant
    with torch.no_grad():
        assert torch.equal(network(IMAGES), parts[0](IMAGES) + parts[1](IMAGES))
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    alone = [build_network(name, num_classes=10, channels=1, seed=0) for name in ("resnet14", "resnet8")]
    assert sizes == [sum(p.numel() for p in part.parameters()) for part in alone]


def test_the_last_sign_divides():
    network = built("resnet8+wrn_10_2+resnet14")
    assert isinstance(network.student, ResidualSum)
    assert (
        network.assistant.state_dict().keys()
        == build_network("resnet14", num_classes=10, channels=1, seed=0).state_dict().keys()
    )


def test_equal_seeds_give_equal_weights_and_equal_parts_differ():
    one, other = built("resnet8+resnet8"), built("resnet8+resnet8")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values()))
    assert not torch.equal(one.student.conv1.weight, one.assistant.conv1.weight)


def test_each_part_has_its_own_bits():
    def quantised(network: nn.Module) -> int:
        return sum("quantised" in type(module).__module__ for module in network.modules())

    first, second, none = (built(name) for name in ("resnet8_w2a4+resnet8", "resnet8+resnet8_w2a4", "resnet8+resnet8"))
    assert [quantised(part) > 0 for part in (first.student, first.assistant)] == [True, False]
    assert [quantised(part) > 0 for part in (second.student, second.assistant)] == [False, True]
    assert quantised(none) == 0
    with pytest.raises(ConfigError, match="w3"):
        build_network("resnet8_w3a4+resnet8", num_classes=10, channels=1)


@pytest.mark.parametrize(
    "name", ["resnet20+resnet9", "resnet21+resnet8", "resnet8+", "+resnet8", "+", "resnet8++resnet8"]
)
def test_wrong_parts_are_named(name):
    with pytest.raises(ConfigError, match=r"unknown network '(resnet9|resnet21|)'"):
        build_network(name, num_classes=10, channels=1)


def test_image_sizes_are_checked_for_both_parts():
    check_network("resnet14+resnet8", num_classes=10, channels=1, image_size=(8, 8))
    with pytest.raises(ConfigError, match="cannot take images of 8x8"):
        check_network("resnet8+squeezenet1_1", num_classes=10, channels=1, image_size=(8, 8))


def step(network: ResidualSum) -> None:
    """One step of training on everything that asks for gradients."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    network.train()
    network(IMAGES).square().mean().backward()
    optimizer.step()


def test_a_frozen_student_stays_as_it_is_to_the_last_bit_while_the_assistant_learns():
    network = built()
    network.freeze_student()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step(network)
    network.eval()
    step(network)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("assistant.")}
    assert not any(p.requires_grad for p in network.student.parameters())
    assert all(p.requires_grad and p.grad is not None for p in network.assistant.parameters())


def test_training_mode_reaches_the_assistant_alone_once_the_student_is_frozen():
    network = built().train()
    assert all(module.training for module in network.modules())
    network.freeze_student()
    assert not any(module.training for module in network.student.modules())
    for _ in range(2):
        assert network.train() is network
        assert all(module.training for module in network.assistant.modules())
        assert not any(module.training for module in network.student.modules())
        network.eval()
        assert not any(module.training for module in network.modules())


def test_a_sum_that_is_not_frozen_learns_as_one():
    network = built()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    step(network)
    assert not [name for name, value in network.state_dict().items() if torch.equal(value, before[name])]


def test_folding_folds_both_parts():
    network = built()
    step(network)
    folded = fold_batchnorm(network)
    with torch.no_grad():
        assert torch.allclose(folded(IMAGES), network.eval()(IMAGES), rtol=0, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
