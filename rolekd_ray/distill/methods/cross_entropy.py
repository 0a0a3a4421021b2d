"""Learning from labels: no teacher."""

import torch.nn.functional as F
from torch import Tensor

from rolekd_ray.distill.registry import method


@method("cross_entropy", soft_labels=True)
def cross_entropy(logits_student: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of the student's logits (N, K) with the labels: a scalar in nats.

    Labels are (N,) int64 or class probabilities (N, K).
    """
    return F.cross_entropy(logits_student, labels)


@method("label_smoothing", soft_labels=True)
def label_smoothing(logits_student: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Return the mean cross-entropy with labels of which a share is spread over all classes: a scalar in nats.

    The control without a teacher for whatever a teacher's soft targets gain; it takes the place of `cross_entropy`.

    Args:
        logits_student: (N, K).
        labels: (N,) int64, or class probabilities (N, K).
        smoothing: the share, in [0, 1).

    Source: Szegedy et al., arXiv 1512.00567, section 7.
    """
    return F.cross_entropy(logits_student, labels, label_smoothing=smoothing)
