"""Boundary supporting samples: the student learns from images that were pushed over the teacher's class boundary."""

import torch
from torch import Tensor

from rolekd_ray.distill.attacks import boundary_attack
from rolekd_ray.distill.methods.hinton import check_temperature
from rolekd_ray.distill.outputs import Networks
from rolekd_ray.distill.registry import method


@method("bss", same_view=True)
def bss(
    view: Tensor,
    networks: Networks,
    logits_student: Tensor,
    logits_teacher: Tensor,
    labels: Tensor,
    progress: float,
    generator: torch.Generator,
    temperature: float = 3.0,
    *,
    samples: int = 64,
    steps: int = 10,
    step_size: float = 0.3,
) -> Tensor:
    """Return max(2 (1 - 4/3 progress), 0) · mean soft cross-entropy of teacher and student at T on attacked images.

    Chosen are the images that both networks get right and whose probabilities, apart from the label's, differ most in
    squares. Each is attacked towards a class drawn by the teacher's probabilities without the label's, until the
    teacher's class changes. There is no T², and the last quarter of the training, where the factor is 0, costs nothing.

    Shapes do not depend on the data, so if fewer than the wanted images qualify, others stand in for them: unmoved and
    without weight, though they are seen by the student's BatchNorm. If none qualifies the loss is 0.

    The authors also let the weight of the clean soft cross-entropy, `hinton` without its T², fall from 4 to 1 by
    max(3 (1 - progress), 0) + 1: in a run, a schedule whose segments carry falling weights of `hinton`.

    Args:
        view: (N, C, H, W), normalised.
        networks: student, teacher, and how images were normalised. The attack leaves parameters, buffers and `.grad` of
            both alone; the gradient enters the student through one pass over the attacked images.
        logits_student: (N, K) of the view, to choose by; gets no gradient.
        logits_teacher: (N, K) of the view.
        labels: (N,) int64.
        progress: in [0, 1].
        generator: on the tensors' device; draws the target classes.
        temperature: T, above 0; the authors' is 3.
        samples: most images to attack; at most a quarter of the batch, but two: BatchNorm of vectors fails on one.
        steps: of the attack; each costs a pass of the teacher forwards and backwards.
        step_size: of the attack.

    Raises:
        ConfigError: the temperature is not above 0.

    Source: Heo et al., arXiv 1805.05532, as their code (BSS_distillation) has it. The paper's text was not read.
    """
    check_temperature(temperature)
    ratio = max(2 * (1 - 4 / 3 * progress), 0.0)
    if ratio == 0:
        return 0.0 * logits_student.sum()
    logits_student, logits_teacher = logits_student.detach(), logits_teacher.detach()
    count = max(min(samples, max(len(view) // 4, 2), len(view)), 1)
    chosen, usable = _base_samples(logits_student, logits_teacher, labels, count)
    targets = _target_classes(logits_teacher[chosen], labels[chosen], generator)
    moved = _moved(networks, view[chosen], targets, usable, steps, step_size)
    own = networks.shards.gather(networks.student(moved), len(chosen)).to(logits_student.dtype)
    with torch.no_grad():
        wanted = networks.shards.gather(networks.teacher(moved), len(chosen)).to(logits_student.dtype)
    losses = -((wanted / temperature).softmax(1) * (own / temperature).log_softmax(1)).sum(1)
    return ratio * torch.where(usable, losses, 0.0).sum() / usable.sum().clamp(min=1)


def _base_samples(student: Tensor, teacher: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return places of images (count,) to attack, best first, and whether each qualifies."""
    right = (student.argmax(1) == labels) & (teacher.argmax(1) == labels)
    gaps = (student.softmax(1) - teacher.softmax(1)).square().scatter(1, labels[:, None], 0.0).sum(1)
    scores, chosen = torch.where(right, gaps, -1.0).topk(count)
    return chosen, scores >= 0


def _target_classes(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a class (n,) per image, drawn by softmax(logits) without the label's: the largest of logit + Gumbel noise.

    From logits, for where the teacher is sure the other probabilities round to 0.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=logits.dtype, device=logits.device)
    return (logits - (-uniform.log()).log()).scatter(1, labels[:, None], -torch.inf).argmax(1)


def _moved(networks: Networks, views: Tensor, targets: Tensor, usable: Tensor, steps: int, step_size: float) -> Tensor:
    """Return this worker's rows of the chosen images, attacked where usable, normalised again."""
    mean, std = (values.to(views.dtype).view(-1, 1, 1) for values in (networks.mean, networks.std))
    rows = networks.shards.rows
    images = (rows(views) * std + mean).clamp(0, 1)
    attacked, _ = boundary_attack(
        lambda pixels: networks.teacher((pixels - mean) / std), images, rows(targets), steps=steps, step_size=step_size
    )
    return (torch.where(rows(usable)[:, None, None, None], attacked, images) - mean) / std
