"""Edits: a learned distribution of bounded numbers, which parts of an augmentor turn into changes of an image."""

import torch
from torch import Tensor, nn

from rolekd_ray.augment.randomness import normals, stream_key

INITIAL_SPREAD = 0.01
_TINY = 1e-12


class Edits(nn.Module):
    """Draws edits bound · tanh((b + W ε) / bound); b and W are learned and shared by all images.

    b starts at 0 and W at normal numbers times 0.01, the same ones for everyone: a network's initial weights are not
    changed by whether an agent learns. Near 0 an edit is b + W ε; no parameter, however large, takes it out of bounds.

    Args:
        name: says which initial numbers; parts that are learned together have different ones.
        bounds: the largest size of each edit, (D,) at least 0; an edit of bound 0 stays 0.
        noise: numbers ε per image.

    Source: a design (unverified, not the paper's).
    """

    bounds: Tensor

    def __init__(self, name: str, bounds: Tensor, noise: int):
        super().__init__()
        self.noise = noise
        self.register_buffer("bounds", bounds.float())
        self.bias = nn.Parameter(torch.zeros(len(bounds)))
        first = normals(stream_key("learned", name, "weight"), torch.arange(len(bounds)), noise)
        self.weight = nn.Parameter(INITIAL_SPREAD * first)

    def forward(self, noise: Tensor) -> Tensor:
        """Return edits (N, D) of standard normal numbers (N, noise); dtype of the parameters."""
        # No matrix product: its bits would depend on the batch's size. In float64, as in `normals`
        raw = self.bias.double() + (noise.double()[:, None, :] * self.weight.double()).sum(2)
        bounds = self.bounds.double()
        return (bounds * torch.tanh(raw / bounds.clamp(min=_TINY))).to(self.bias.dtype)
