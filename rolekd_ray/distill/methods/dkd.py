"""Decoupled distillation: how sure the teacher is of the label, apart from what it thinks of the other classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rolekd_ray.distill.methods.hinton import check_temperature
from rolekd_ray.distill.registry import method


@method("dkd")
def dkd(
    logits_student: Tensor,
    logits_teacher: Tensor,
    labels: Tensor,
    progress: float = 1.0,
    temperature: float = 4.0,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    warm_up: float = 20 / 240,
) -> Tensor:
    """Return w · T² · (alpha TCKD + beta NCKD), means over N, in nats; its weights are inside.

    TCKD is KL(teacher ‖ student) of (label, any other class), NCKD that of the other classes among themselves, each of
    softmax(logits / T). alpha = 1 and beta = 1 - p_t(label) per image would give `hinton`.

    Args:
        logits_student: (N, K), K 2 or more.
        logits_teacher: (N, K).
        labels: (N,) int64.
        progress: share of the training that is done.
        temperature: T, above 0.
        alpha: weight of TCKD.
        beta: weight of NCKD; the authors choose it per pair of networks.
        warm_up: share of the training in which w rises from 0 to 1; 0 leaves w at 1.

    Raises:
        ConfigError: the temperature is not above 0.

    Source: Zhao et al., arXiv 2203.08679; warm-up of 20 in 240 epochs as mdistiller's, where w
    moves from epoch to epoch and here with every batch. That code masks the label by subtracting
    1000 from its logit, which fails where logits / T are larger than that or float16; here it is left out by index.
    """
    check_temperature(temperature)
    label_student, others_student = _parts(logits_student / temperature, labels)
    label_teacher, others_teacher = _parts(logits_teacher / temperature, labels)
    target = F.kl_div(label_student, label_teacher, reduction="batchmean", log_target=True)
    others = F.kl_div(others_student, others_teacher, reduction="batchmean", log_target=True)
    warmup = min(progress / warm_up, 1.0) if warm_up else 1.0
    return warmup * temperature**2 * (alpha * target + beta * others)


def _parts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of (label, any other) (N, 2), and of the others among themselves (N, K - 1)."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, places + (places >= labels[:, None]))
    both = torch.cat([logits.gather(1, labels[:, None]), others.logsumexp(1, keepdim=True)], dim=1)
    return both.log_softmax(1), others.log_softmax(1)
