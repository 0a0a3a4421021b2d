"""What the augmentor ascends: the student's change on a view, less the teacher's."""

import torch.nn.functional as F
from torch import Tensor


def changes(
    student_clean: Tensor, student_view: Tensor, teacher_clean: Tensor, teacher_view: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return (D_s, D_t): how far the view moves each network from its own output on the clean image.

    D = mean_N KL(softmax(clean / T) ‖ softmax(view / T)), in nats; a clean output is a constant, no gradient reaches
    it. The augmentor ascends student_weight · D_s - teacher_weight · D_t. Against KL(teacher ‖ student) on the view
    this has the advantage that confusing the teacher is no gain.

    Args:
        student_clean: logits (N, K) of any float dtype; computed in float32.
        student_view: of the same shape, as all.
        teacher_clean: the teacher's.
        teacher_view: the teacher's.
        temperature: T, above 0.

    Source: a recollection (unverified, not the paper's) of HARD's objective.
    """
    return (
        divergence(student_clean.detach(), student_view, temperature),
        divergence(teacher_clean.detach(), teacher_view, temperature),
    )


def divergence(reference: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return mean_N KL(softmax(reference / T) ‖ softmax(other / T)) of logits (N, K): a float32 scalar in nats."""
    log_reference = F.log_softmax(reference.float() / temperature, dim=1)
    log_other = F.log_softmax(other.float() / temperature, dim=1)
    return F.kl_div(log_other, log_reference, reduction="batchmean", log_target=True)


def kept(teacher_clean: Tensor, teacher_view: Tensor) -> Tensor:
    """Return the share of images whose top class the teacher keeps on the view; logits (N, K), a float32 scalar."""
    return (teacher_clean.argmax(1) == teacher_view.argmax(1)).float().mean()
