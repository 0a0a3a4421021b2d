"""What methods of features share: lengths divided out with finite gradients, maps of one size, checks of shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rolekd_ray.errors import ConfigError

TINY = 1e-12
_ROUNDINGS = 8
Pool = Callable[[Tensor, Any], Tensor]


def unit(vectors: Tensor, dim: int = 1) -> Tensor:
    """Return vectors divided by their length along `dim`; those shorter than 1e-12 become 0 and get no gradient.

    `F.normalize` divides a zero vector by 1e-12 instead and so multiplies its gradient by 1e12; the plain quotient's
    gradient is NaN there.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    long = lengths > TINY
    return vectors * torch.where(long, 1 / torch.where(long, lengths, 1.0), 0.0)


def centred(rows: Tensor) -> Tensor:
    """Return rows (N, K) minus their means; those whose spread is but rounding become 0 and get no gradient.

    Else `unit` would make whole vectors of the rounding of equal values, with gradients of its inverse.
    """
    found = rows - rows.mean(dim=1, keepdim=True)
    spread, size = (torch.linalg.vector_norm(values, dim=1, keepdim=True) for values in (found, rows))
    return torch.where(spread > _ROUNDINGS * torch.finfo(rows.dtype).eps * size, found, 0.0)


def vector_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of features with everything but the batch flattened: (N, D_s) and (N, D_t)."""
    return [(own.flatten(1), wanted.flatten(1)) for own, wanted in zip(student, teacher, strict=True)]


def map_pairs(
    name: str, student: Sequence[Tensor], teacher: Sequence[Tensor], pool: Pool = F.adaptive_avg_pool2d
) -> list[tuple[Tensor, Tensor]]:
    """Return pairs of maps of one height and width; of the two the larger is pooled.

    Args:
        name: of the method, for the error.
        student: (N, C_s, H, W) each.
        teacher: (N, C_t, H', W') each; as many.
        pool: maps (maps, [height, width]) to smaller maps.

    Raises:
        ConfigError: features that are no maps.
    """
    for features in (*student, *teacher):
        if features.ndim != 4:
            shape = ", ".join(map(str, features.shape[1:]))
            raise ConfigError(
                f"distill.layers.{name}: got features (N, {shape}); expected layers with maps (N, C, H, W)"
            )
    return [same_size(own, wanted, pool) for own, wanted in zip(student, teacher, strict=True)]


def same_size(first: Tensor, second: Tensor, pool: Pool) -> tuple[Tensor, Tensor]:
    """Return two maps, pooled to the smaller height and the smaller width where they differ."""
    size = [min(pair) for pair in zip(first.shape[2:], second.shape[2:], strict=True)]
    fitted = [maps if list(maps.shape[2:]) == size else pool(maps, size) for maps in (first, second)]
    return fitted[0], fitted[1]


def total(losses: Sequence[Tensor]) -> Tensor:
    """Return the sum of the losses of pairs."""
    return torch.stack(list(losses)).sum()
