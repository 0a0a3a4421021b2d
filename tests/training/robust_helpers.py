"""What the tests of robustness and similarity share: small networks trained on real digits, and linear ones."""

import copy
from functools import cache

import torch
from torch import Tensor, nn

from rolekd_ray.config import BaseAugmentationSettings
from rolekd_ray.data.sources import load_image_set
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.training.views import Views

MEAN, STD = torch.tensor([0.3]), torch.tensor([0.4])


def clean_views() -> Views:
    nothing = BaseAugmentationSettings(crop_padding_pixels=0, flip=False, cutout_pixels=0)
    return Views(nothing, SearchSpace("none", ()), MEAN, STD, seed=0)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """200 real digits (N, 1, 8, 8) uint8 that no network was trained on, and their labels."""
    found = load_image_set("digits", None, split="test")
    return found.images[:200], found.labels[:200]


def trained(seed: int = 0) -> nn.Module:
    """A ResNet-8 that has seen 1,200 digits once, normalised; right on most, in evaluation mode."""
    return copy.deepcopy(_trained(seed))


@cache
def _trained(seed: int) -> nn.Module:
    data, views = load_image_set("digits", None, split="train"), clean_views()
    network = build_network("resnet8", num_classes=10, channels=1, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    for part in order[:1200].split(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(views.clean(data.images[part])), data.labels[part]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


class Untouched:
    """Checks on leaving that parameters, buffers, gradients and modes of networks are what they were."""

    def __init__(self, *networks: nn.Module):
        self.networks = networks
        for network in networks:
            for number, parameter in enumerate(network.parameters()):
                parameter.grad = torch.full_like(parameter, number) if number % 2 else None

    def __enter__(self) -> None:
        self.before = [self._state(network) for network in self.networks]

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            for network, before in zip(self.networks, self.before):
                after = self._state(network)
                assert after.keys() == before.keys()
                for name, value in after.items():
                    same = torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]
                    assert same, name

    @staticmethod
    def _state(network: nn.Module) -> dict:
        state = {name: value.clone() for name, value in network.state_dict().items()}
        for name, parameter in network.named_parameters():
            state[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
            state[f"{name}.requires_grad"] = parameter.requires_grad
        return state | {f"{name}.training": module.training for name, module in network.named_modules()}
