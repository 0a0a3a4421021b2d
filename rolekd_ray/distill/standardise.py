"""Logit standardisation: students follow the teacher's ranking of classes, not its scale."""

from torch import Tensor

EPSILON = 1e-7


def standardise(logits: Tensor) -> Tensor:
    """Return (logits - mean) / deviation of each row of (N, K); a row of equal logits becomes zeros.

    Source: Sun et al., arXiv 2403.01427, section 4.2.
    """
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + EPSILON**2).sqrt()
