"""Logit standardisation: only the pattern of the logits is compared, not their mean and spread."""

import torch
from torch import Tensor

from rolekd_ray.distill.features import centred, unit


def standardise(logits: Tensor) -> Tensor:
    """Return logits (N, K) with mean 0 and standard deviation 1 over each image's classes.

    Both networks' logits pass through it before a temperature divides them; the temperature then is in units of
    standard deviations. The deviation is the sample's (divided by K - 1). Logits that are all equal become 0, without
    gradient. The result is float32 at least.

    Source: Sun et al., arXiv 2403.01427. As their code has it, apart from its 1e-7 beside the deviation.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return unit(centred(logits)) * (logits.shape[1] - 1) ** 0.5
