"""Sharding does not change the maths: one worker, two and four, for losses of every kind."""

import numpy as np
import pytest
import torch
from sharding_cases import COUNTS, LOSSES, STEPS, TinyNet, all_cases, hinton, in_group
from torch import nn

from rolekd_ray.training.batchnorm import share_batchnorm
from rolekd_ray.training.sharding import Sharding


@pytest.fixture(scope="module")
def alone():
    torch.set_num_threads(1)
    return all_cases(Sharding())


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def group(request):
    return in_group(request.param)


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **tolerance)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_weights_are_those_of_one_worker(alone, group, loss, count):
    expected = alone[loss, count]
    for found in group:
        np.testing.assert_allclose(found[loss, count]["losses"], expected["losses"], rtol=1e-10)
        assert_close(found[loss, count]["state"], expected["state"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_all_workers_end_with_the_same_bits(group, loss, count):
    for other in group[1:]:
        assert other[loss, count]["losses"] == group[0][loss, count]["losses"]
        assert_close(other[loss, count]["state"], group[0][loss, count]["state"], rtol=0, atol=0)


class SplitBatchNorm(nn.Module):
    """The reference of mode `local`: one process that normalises each part of the batch by itself."""

    def __init__(self, norm: nn.Module, parts: int):
        super().__init__()
        self.norms = [norm] + [type(norm)(norm.num_features, affine=False).double() for _ in range(parts - 1)]

    def forward(self, rows):
        weight, bias = self.norms[0].weight, self.norms[0].bias
        shape = (1, -1, *[1] * (rows.dim() - 2))
        parts = []
        for norm, part in zip(self.norms, rows.tensor_split(len(self.norms))):
            norm.weight, norm.bias = None, None
            done = norm(part)
            parts.append(done if weight is None else done * weight.view(shape) + bias.view(shape))
        self.norms[0].weight, self.norms[0].bias = weight, bias
        return torch.cat(parts)


@pytest.mark.parametrize("count", [12, 9])
def test_local_statistics_are_those_of_one_process_that_splits_the_batch(group, count):
    network, teacher = TinyNet(0), TinyNet(1).eval()
    split = {}
    for name, child in list(network.features.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            split[f"features.{name}"] = SplitBatchNorm(child, len(group))
    layers = [split.get(f"features.{n}", child) for n, child in network.features.named_children()]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)
    generator, losses = torch.Generator().manual_seed(2), []
    for _ in range(STEPS):
        images = torch.randn(count, 1, 8, 8, generator=generator, dtype=torch.float64)
        labels = torch.randint(4, (count,), generator=generator)
        features = images
        for layer in layers:
            features = layer(features)
        loss = hinton(network.classifier(features), teacher(images)[1].detach(), features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for found in group:
        np.testing.assert_allclose(found["local", count]["losses"], losses, rtol=1e-10)
        for name, parameter in network.named_parameters():
            np.testing.assert_allclose(found["local", count]["state"][name], parameter.detach(), rtol=1e-8, atol=1e-10)
        for place, norm in split.items():
            mean = torch.stack([part.running_mean for part in norm.norms]).mean(0)
            np.testing.assert_allclose(found["local", count]["state"][f"{place}.running_mean"], mean, rtol=1e-8)


def test_the_epoch_loop_and_validation(alone, group):
    expected = alone["epochs"]
    for found in (worker["epochs"] for worker in group):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert found["evaluation"]["images"] == expected["evaluation"]["images"]
        numbers = [
            {k: v for k, v in of.items() if k != "class_accuracy"}
            for of in (found["evaluation"], expected["evaluation"])
        ]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=0.03)
        assert_close(found["state"], expected["state"], rtol=1e-3, atol=1e-4)


def test_names_and_parameters_of_a_network_stay(group):
    assert all(worker["kept"] for worker in group)


def test_the_first_worker_decides(group):
    assert all(worker["first"] == {"rank": 0} for worker in group)


def test_rows_lose_and_double_nothing():
    for count in (0, 1, 5, 16):
        for workers in (1, 2, 3, 8):
            parts = [Sharding(rank, workers).rows(torch.arange(count)) for rank in range(workers)]
            assert torch.cat(parts).tolist() == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_worker_with_one_value_per_channel_normalises_by_what_it_knows():
    """torch's BatchNorm refuses; the other workers would then wait for ever."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    share_batchnorm(network, "local", Sharding(0, 2))
    rows = torch.randn(1, 3)
    before = {name: value.clone() for name, value in network[1].named_buffers()}
    found = network(rows)
    assert torch.allclose(found, network[0](rows), rtol=1e-4) and found.requires_grad  # mean 0, deviation 1 as yet
    assert network(rows[:0]).shape == (0, 4)
    assert all(torch.equal(value, before[name]) for name, value in network[1].named_buffers())
