"""The first right-singular vectors of feature maps, by products of small matrices alone."""

import torch
from torch import Tensor

_SQUARINGS = 10
_NEGLIGIBLE = 1e-5
_TINY = 1e-20


def singular_vectors(features: Tensor, count: int) -> Tensor:
    """Return the right-singular vectors of the largest singular values of each image's map, as (positions, channels).

    Each has length 1. Its sign is such that its own largest component is positive, or, where there are fewer positions
    than channels, that of the left-singular vector. A vector is 0 where what the ones before it leave is less than
    1e-5 of the sum of squares, as in a map that is constant, or 0. Where singular values are equal, vectors are some of
    those that the map allows.

    Every gradient is finite: a vector is read off the Gram matrix's 1024th power (ten squarings), and the gradient is
    that power's. It equals the exact one, whose terms grow as 1 / (λ - λ'), where squared singular values differ by
    more than about one hundredth, and stays in the order of 1024 / λ elsewhere. A vector that is 0 has gradient 0.

    `torch.linalg.eigh` and `svd` make the host wait for the device. This costs ten products of (side, side) matrices
    per image and vector, which are kept for the backward pass; side is the smaller of positions and channels. On one
    CPU core four vectors of 64 maps of side 64 take about 0.3 s with gradients, `torch.linalg.svd` 0.1 s without.

    Args:
        features: (N, C, …), float; vectors (N, C) are maps of one position.
        count: of vectors, at least 1.

    Returns:
        (N, k, C), k the least of `count`, positions and channels.
    """
    matrix = features.flatten(2) if features.dim() > 2 else features[:, :, None]
    matrix = matrix / matrix.detach().abs().amax((1, 2), keepdim=True).clamp(min=_TINY)  # directions have no scale
    by_channels = matrix.shape[1] <= matrix.shape[2]
    gram = matrix @ matrix.mT if by_channels else matrix.mT @ matrix
    whole, found = _trace(gram), []
    for _ in range(min(count, gram.shape[1])):
        found.append(_dominant(gram, whole))
        gram = _without(gram, found[-1])
    vectors = torch.stack(found, dim=1)
    return vectors if by_channels else _unit(vectors @ matrix.mT)


def align(vectors: Tensor, targets: Tensor) -> Tensor:
    """Return of each image the vector that is nearest to a target's line, turned to the target's side: (N, C).

    Args:
        vectors: (N, k, C).
        targets: (N, C).
    """
    cosines = (vectors * targets[:, None]).sum(2).detach()
    best = cosines.abs().argmax(1, keepdim=True)
    chosen = vectors.gather(1, best[:, :, None].expand(-1, -1, vectors.shape[2]))[:, 0]
    return chosen * cosines.gather(1, best).sign()


def _dominant(gram: Tensor, whole: Tensor) -> Tensor:
    """Return eigenvectors (N, D) of the largest eigenvalues, 0 where the trace is negligible."""
    trace = _trace(gram)
    counts = trace > _NEGLIGIBLE * whole
    power = torch.where(counts, gram, 0.0) / torch.where(counts, trace, 1.0)
    for _ in range(_SQUARINGS):
        power = power @ power
        power = power / _trace(power).clamp(min=1e-6)  # 1 / D at least, unless all is 0
    # All columns are multiples of the vector; the one with the largest diagonal element is the longest.
    place = power.diagonal(dim1=1, dim2=2).argmax(1)[:, None, None].expand(-1, power.shape[1], 1)
    return _unit(power.gather(2, place)[:, :, 0])


def _without(gram: Tensor, vector: Tensor) -> Tensor:
    """Return P G P, P the projection onto what is orthogonal to the vectors (N, D)."""
    image = gram @ vector[:, :, None]
    along = vector[:, None] @ image
    column, row = vector[:, :, None], vector[:, None]
    return gram - column @ image.mT - image @ row + along * (column @ row)


def _trace(matrices: Tensor) -> Tensor:
    return matrices.detach().diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def _unit(vectors: Tensor) -> Tensor:
    return vectors * (vectors.square().sum(-1, keepdim=True) + _TINY).rsqrt()
