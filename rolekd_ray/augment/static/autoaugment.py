"""AutoAugment: one of 25 found pairs of ops per image."""

import torch
from torch import Tensor

from rolekd_ray.augment.ops import apply_ops
from rolekd_ray.augment.randomness import below, stream_key, uniforms
from rolekd_ray.augment.static.autoaugment_policies import POLICIES
from rolekd_ray.augment.static.tables import table, table_ops
from rolekd_ray.roles import Role


class AutoAugment:
    """Applies one of 25 pairs of ops to each image, each op of it by its own chance; an `Agent`.

    Args:
        fill: colour of pixels that an op uncovers, (C,) uint8.
        dataset: whose policy, `cifar10`, `svhn` or `imagenet`.

    Source: Cubuk et al., arXiv 1805.09501; policies, strengths and chances are those of torchvision 0.29's
    `v2.AutoAugment`, pixels as `RandAugment` here describes.
    """

    def __init__(self, fill: Tensor, *, dataset: str = "cifar10"):
        self.fill, self.dataset = fill, dataset
        names = table_ops("autoaugment")
        pairs = POLICIES[dataset]
        self._rows = torch.tensor([[names.index(op) for op, _, _ in pair] for pair in pairs])
        self._bins = torch.tensor([[bin_ or 0 for _, _, bin_ in pair] for pair in pairs])
        self._chances = torch.tensor([[chance for _, chance, _ in pair] for pair in pairs])

    def __call__(self, images: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the view; see `Agent`."""
        with torch.inference_mode():
            ops, magnitudes = self._drawn(images, indices, stream_key(seed, role, epoch, "autoaugment"))
        return apply_ops(images, ops, magnitudes, ops.new_zeros(*ops.shape, 2), self.fill)

    def _drawn(self, images: Tensor, indices: Tensor, key: int) -> tuple[Tensor, Tensor]:
        draws = uniforms(key, indices, 3)
        pair = below(draws[:, 0], len(self._rows))
        rows, bins, chances = (t.to(draws.device)[pair] for t in (self._rows, self._bins, self._chances))
        fired, signs = draws[:, 1:] < chances, draws[:, 1:] < chances / 2  # given that it fired, a fair coin
        ops, magnitudes = table("autoaugment", images.shape[-2], images.shape[-1], draws.device)
        return torch.where(fired, ops[rows], -1), magnitudes[rows, bins, signs.long()]
