"""Quantised students: DoReFa's weights and activations of few bits, put into a network that was built without.

Source: DoReFa-Net (arXiv 1606.06160), as the role-kd code has it (`get_dorefa` in `pba/kd/nets/ResNet.py`). Gradients
stay in full precision: that code builds a quantiser for them and never calls it.
"""

import re
from typing import Any

import torch
from torch import Tensor, fx, nn

from rolekd_ray.errors import ConfigError
from rolekd_ray.models.quantisable import find_quantisable

BITS = (1, 2, 4, 8, 32)
"""Of weights and of activations; 32 leaves them as they are."""


class _Round(torch.autograd.Function):
    """Rounding to the nearest whole number, halves to the even one; the gradient passes as if it were the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Sign(torch.autograd.Function):
    """The sign, 1 of zero, times the mean absolute value; the gradient passes as if it were the identity."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return torch.where(values >= 0, 1.0, -1.0).to(values.dtype) * values.abs().mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class _Levels(torch.autograd.Function):
    """An activation's levels; torch's own clipping treats its ends' gradients differently from version to version."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward((values > 0) & (values <= 1))
        return (values.clamp(0, 1) * steps).round() / steps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return gradients[0].where(passes, 0), None


@fx.wrap
def quantised_weight(weight: Tensor, bits: int) -> Tensor:
    """Return weights on 2^bits evenly spaced levels from -1 to 1; of one bit ±E|w|.

    With n = 2^bits - 1: w̃ = tanh w / (2 max|tanh w|) + ½, and 2 round(n w̃) / n - 1, the maximum over the whole tensor.
    The gradient passes through the rounding as it is and through all else as it should, the maximum too.

    Args:
        weight: any shape, not all zeros.
        bits: one of `BITS`; 32 returns the weights themselves.

    Source: the role-kd code's `fw`; here n divides last, which gives the numbers nearest to the levels.
    """
    if bits == 32:
        return weight
    if bits == 1:
        return _Sign.apply(weight)
    steps = 2**bits - 1
    squashed = weight.tanh()
    share = squashed / (2 * squashed.abs().max()) + 0.5
    return (2 * _Round.apply(share * steps) - steps) / steps


@fx.wrap
def quantised_activation(values: Tensor, bits: int) -> Tensor:
    """Return activations on 2^bits evenly spaced levels from 0 to 1: with n = 2^bits - 1, round(n clip(x, 0, 1)) / n.

    The gradient passes where 0 < x <= 1, as through a ReLU and a clip.

    Args:
        values: any shape, before any activation.
        bits: one of `BITS`; 32 is a ReLU.

    Source: the role-kd code's `activate`.
    """
    if bits == 32:
        return values.relu()
    return _Levels.apply(values, 2**bits - 1)


class QuantisedConv2d(nn.Conv2d):
    """A convolution that computes with quantised weights and trains those it holds."""

    bits: int

    def forward(self, input: Tensor) -> Tensor:
        """Map as a convolution."""
        return self._conv_forward(input, quantised_weight(self.weight, self.bits), self.bias)


class QuantisedLinear(nn.Linear):
    """A linear layer that computes with quantised weights and trains those it holds."""

    bits: int

    def forward(self, input: Tensor) -> Tensor:
        """Map as a linear layer."""
        return nn.functional.linear(input, quantised_weight(self.weight, self.bits), self.bias)


class QuantisedActivation(nn.Module):
    """What takes the place of a ReLU."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits

    def forward(self, values: Tensor) -> Tensor:
        """Map to levels in [0, 1]; any shape."""
        return quantised_activation(values, self.bits)


def split_bits(name: str) -> tuple[str, tuple[int, int], list[str]]:
    """Split a model's name: `resnet8_w2a4` is resnet8 with 2 bits of weights and 4 of activations.

    A name without such an ending has 32 bits of both.

    Returns:
        The network's name, (weight bits, activation bits), and what is wrong with these.
    """
    found = re.fullmatch(r"(.+)_w(\d+)a(\d+)", name)
    if found is None:
        return name, (32, 32), []
    bits = int(found[2]), int(found[3])
    allowed = ", ".join(map(str, BITS))
    problems = [
        f"network {name!r}: bits of {what}: got {count}; expected one of {allowed}"
        for what, count in zip(("weights", "activations"), bits)
        if count not in BITS
    ]
    return found[1], bits, problems


def quantise(network: nn.Module, *, weight_bits: int, activation_bits: int, where: str) -> None:
    """Quantise a network in place; names, shapes and values of its parameters and buffers stay.

    In full precision stay the first convolution, the last layer, every BatchNorm, and the activations that the last
    layer or the global pooling before it takes. A residual block's closing activation is quantised, so its shortcut
    carries quantised activations, as in the role-kd code; there, however, features for distillation are taken before
    that quantisation, and a stage's output here is behind it. What no activation precedes, such as the outputs of
    MobileNetV2's blocks, is not quantised.

    Args:
        network: of convolutions, linear layers, BatchNorm, pooling, ReLU and ReLU6, each activation a module.
        weight_bits: one of `BITS`; 32 leaves the layers as they are.
        activation_bits: one of `BITS`; 32 leaves the activations as they are.
        where: begins the error.

    Raises:
        ConfigError: the network has something else; names the layers.
    """
    if weight_bits == activation_bits == 32:
        return
    found = find_quantisable(network)
    if problems := found.problems + (found.shared if activation_bits < 32 else ()):
        raise ConfigError(*(f"{where}: cannot be quantised: {problem}" for problem in problems))
    for name in found.layers if weight_bits < 32 else ():
        layer = network.get_submodule(name)
        kind = QuantisedConv2d if isinstance(layer, nn.Conv2d) else QuantisedLinear
        network.set_submodule(name, _in_place_of(layer, kind, weight_bits))
    for name in found.activations if activation_bits < 32 else ():
        network.set_submodule(name, QuantisedActivation(activation_bits).train(network.training))


def _in_place_of(module: nn.Module, kind: type[nn.Module], bits: int) -> nn.Module:
    """Return a quantised layer with the very same parameters and settings."""
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__, bits=bits)
    return other
