"""Random shares that add up to 1, from counters: Dirichlet and, with two shares, Beta."""

from functools import lru_cache

import torch
from torch import Tensor

from rolekd_ray.augment.randomness import below

_LEVELS = 1 << 16
_LEAST = 1e-300  # so that shares of a small alpha, all below what float64 holds, can still be divided by their sum


def dirichlet(draws: Tensor, alpha: float) -> Tensor:
    """Return shares with the symmetric Dirichlet distribution; of two shares each is Beta(alpha, alpha).

    Args:
        draws: uniforms in [0, 1), (N, K) float32.
        alpha: concentration, 0.01 to 100: 1 is uniform over all shares; below, one share takes nearly all.

    Returns:
        (N, K) float64, rows of shares that add up to 1; a row depends on its own draws alone, bit by bit.

    Source: Gamma(alpha) variables over their sum. Each is the quantile of one draw, read from a table of 65 536 equally
    likely levels: an error of at most 1/131 072 in probability. A logarithm or a power instead would differ in its last
    bit between vectorised loops and their tails, and so with the batch.
    """
    parts = _gamma_quantiles(float(alpha), draws.device)[below(draws, _LEVELS)]
    total = parts[:, 0]
    for part in parts.unbind(1)[1:]:  # in this order, whatever the batch
        total = total + part
    return parts / total.unsqueeze(1)


@lru_cache(maxsize=8)
def _gamma_quantiles(alpha: float, device: torch.device) -> Tensor:
    """Return the quantiles of Gamma(alpha) in the middle of each level, (65 536,) float64."""
    from scipy.special import gammaincinv  # 50 ms of import that only this agent needs

    middles = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    return torch.from_numpy(gammaincinv(alpha, middles.numpy())).clamp_(min=_LEAST).to(device)
