"""An ensemble: several trained networks that answer as one."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Combine = Literal["probabilities", "logits"]


class Ensemble(nn.Module):
    """Networks `members.0`, `members.1`, …, of any architectures, whose mean is one network's logits.

    Each of them takes all images and the same weight: a network that is given twice counts twice. A single one comes
    out as it is, up to a number that is added to all logits of an image (`probabilities`), which no softmax sees.

    Args:
        members: at least one; all for the same classes and channels.
        combine: `probabilities`: logits whose softmax is the mean of the members' softmaxes; they are log
            probabilities. `logits`: the mean of the members' logits, whose softmax is the members' geometric mean,
            made to sum to 1.

    A temperature T acts on what comes out. `logits`: as if on each member's logits, for a mean is linear.
    `probabilities`: the mean p is softened, softmax(log p / T), that is p^(1/T) made to sum to 1. It is not the mean of
    softened members, which would need the temperature in here.

    Source: both means, arithmetic and geometric, are named by Hinton et al. 2015 (arXiv 1503.02531) for soft targets of
    an ensemble; recalled, not read again.
    """

    def __init__(self, members: Sequence[nn.Module], combine: Combine = "probabilities"):
        super().__init__()
        assert members, "an ensemble of none"
        self.members = nn.ModuleList(members)
        self.combine = combine

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, K), float32 or the members' type if that is wider."""
        logits = torch.stack([_precise(member(images)) for member in self.members])
        if self.combine == "logits":
            return logits.mean(0)
        # The exponentials of log_softmax are at most 1 and one of them is at least 1/K: nothing overflows
        return logits.log_softmax(2).logsumexp(0) - math.log(len(self.members))


def _precise(logits: Tensor) -> Tensor:
    """Return logits as float32 at least: in bfloat16 the small probabilities of a mean would be lost."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
