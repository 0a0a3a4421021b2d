"""Logit standardisation: only the pattern of the logits is compared, not their mean and spread."""

from torch import Tensor

from rolekd_ray.distill.features import unit


def standardise(logits: Tensor) -> Tensor:
    """Return logits (N, K) with mean 0 and standard deviation 1 over each image's classes.

    Both networks' logits pass through it before a temperature divides them; the temperature then is in units of
    standard deviations. The deviation is the sample's (divided by K - 1). Logits that are all equal become 0, without
    gradient.

    Source: Sun et al., arXiv 2403.01427. As their code has it, apart from its 1e-7 beside the deviation.
    """
    return unit(logits - logits.mean(dim=1, keepdim=True)) * (logits.shape[1] - 1) ** 0.5
