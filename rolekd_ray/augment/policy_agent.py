"""The agent of PBA and role-kd: per image, a random number of a policy's op settings, in random order."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from rolekd_ray.augment.ops import apply_ops
from rolekd_ray.augment.randomness import stream_key, uniforms
from rolekd_ray.policy.policy import OpSetting, Policy
from rolekd_ray.policy.space import OP_UNITS, SearchSpace
from rolekd_ray.roles import Role

_OPS = list(OP_UNITS)
_DRAWS_PER_FIRED = 3  # sign, row and column of a cutout's centre


class PolicyAgent:
    """Applies a policy to each image.

    Per image a count is drawn from `space.counts`; the settings are visited in random order, each fires with its
    probability, until `count` have fired; the fired ops are applied in that order. An op whose magnitude changes
    nothing still uses up the count. A policy counts as a set: neither the order of its settings nor settings with
    probability 0 change a view.

    Args:
        policies: weights and policies; each image draws one of them. Normally one; several are role-kd's `flatten`.
        space: the grids that the policies' bins refer to.
        fill: colour of pixels that an op uncovers, (C,) uint8; the dataset's mean colour. PBA makes such pixels
            exactly 0 after normalisation, unless a later colour op resets its alpha channel; ours go through later
            ops as that colour and end within one grey level of 0.

    Source: PBA `augmentation_transforms_hp.py: apply_policy`. The walk is drawn without walking: each setting takes
    one uniform u and fires if u < p; given that, u / p is uniform, so the `count` smallest u / p are the first fired
    settings of a shuffled list.
    """

    def __init__(self, policies: Sequence[tuple[float, Policy]], space: SearchSpace, fill: Tensor):
        assert policies, "an agent needs a policy; an empty Policy() is one"
        firing = [_numbered(policy) for _, policy in policies]
        slots = sorted({slot for settings in firing for slot in settings})
        self.fill = fill
        self._policy_edges = _edges([weight for weight, _ in policies])
        self._count_edges = _edges(space.counts)
        self._most = min(len(space.counts) - 1, len(slots))
        # Draw numbers: settings by op and copy below 0, whatever else the policy holds; the image's own from 0.
        own = range(2 + self._most * _DRAWS_PER_FIRED)
        self._draws = torch.tensor([*own, *(-1 - op - copy * len(_OPS) for op, copy in slots)], dtype=torch.int64)
        self._slot_ops = torch.tensor([op for op, _ in slots], dtype=torch.int64)
        self._probabilities = torch.zeros(len(policies), len(slots))
        self._bins = torch.zeros(len(policies), len(slots), dtype=torch.int64)
        for row, settings in enumerate(firing):
            for slot, setting in settings.items():
                self._probabilities[row, slots.index(slot)] = space.probability(setting.probability_bin)
                self._bins[row, slots.index(slot)] = setting.magnitude_bin
        self._magnitudes = torch.zeros(len(_OPS), space.magnitude_bins, dtype=torch.float64)
        self._signed = torch.zeros(len(_OPS), dtype=torch.bool)
        for op in space.ops:
            self._signed[_OPS.index(op.name)] = op.signed
            if op.magnitudes is not None:
                self._magnitudes[_OPS.index(op.name)] = torch.tensor(op.magnitudes, dtype=torch.float64)

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view; see `Agent`."""
        with torch.inference_mode():
            ops, bins, signs, centres = self._drawn(indices, seed=seed, role=role, epoch=epoch)
            magnitudes = self._magnitudes[ops, bins] * signs  # where there is no op, any will do
        return apply_ops(images, ops, magnitudes, centres, self.fill)

    def _move_to(self, device: torch.device) -> None:
        if self._draws.device != device:
            for name, value in list(vars(self).items()):
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))

    def _drawn(self, indices: Tensor, *, seed: int, role: Role, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ops, magnitude bins, signs (N, K) and cutout centres (N, K, 2)."""
        self._move_to(indices.device)
        draws = uniforms(stream_key(seed, role, epoch, "policy"), indices, self._draws)
        count_draw, policy_draw, fired_draws, setting_draws = draws.split(
            [1, 1, self._most * _DRAWS_PER_FIRED, len(self._slot_ops)], dim=1
        )
        count = torch.bucketize(count_draw.contiguous(), self._count_edges, right=True)
        policy = torch.bucketize(policy_draw[:, 0].contiguous(), self._policy_edges, right=True)
        # u / p < 1 where a setting fires. Of equal values, sort takes the first, everywhere.
        arrival, slots = (setting_draws / self._probabilities[policy]).sort(dim=1, stable=True)
        slots = slots[:, : self._most]
        fired = (arrival[:, : self._most] < 1) & (torch.arange(self._most, device=indices.device) < count)
        ops = torch.where(fired, self._slot_ops[slots], -1)
        bins = torch.where(fired, self._bins[policy[:, None], slots], 0)
        sign, centres = fired_draws.view(len(indices), self._most, _DRAWS_PER_FIRED).split([1, 2], dim=2)
        signs = torch.where((sign[..., 0] < 0.5) & fired & self._signed[ops], -1, 1)
        return ops, bins, signs, centres


def sample_ops(
    agent: PolicyAgent, indices: Tensor, *, seed: int, role: Role, epoch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which ops the agent applies to each sample: the draws that its views are made from.

    Returns:
        Op as its place in `OP_UNITS`, -1 for none; magnitude bin, 0 for none; sign, 1 or -1 (1 for unsigned ops and
        none). Each (N, K) int64, in order of application; K is the largest count, or fewer if fewer settings can fire.
    """
    ops, bins, signs, _ = agent._drawn(indices, seed=seed, role=role, epoch=epoch)
    return ops, bins, signs


def _numbered(policy: Policy) -> dict[tuple[int, int], OpSetting]:
    """Return the settings that can fire by (op's place in `OP_UNITS`, copy), copies in order of their bins."""
    firing = sorted(policy.firing(), key=lambda s: (_OPS.index(s.op), s.probability_bin, s.magnitude_bin))
    return {
        (_OPS.index(op), copy): setting
        for op, settings in groupby(firing, key=lambda s: s.op)
        for copy, setting in enumerate(settings)
    }


def _edges(weights: Sequence[float]) -> Tensor:
    """Return what `bucketize` needs to choose i with chance weights[i] / sum: the inner edges, float32."""
    chances = torch.tensor(weights, dtype=torch.float64)
    return (chances.cumsum(0) / chances.sum())[:-1].float()
