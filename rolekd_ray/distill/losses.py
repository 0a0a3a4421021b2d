"""Losses: plain functions of what both networks put out for one batch.

Each is a mean over the batch, so the mean over equal shards is the whole batch's loss.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rolekd_ray.errors import ConfigError, unknown_name


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a loss may look at.

    Attributes:
        logits_student: (N, K), any float dtype.
        logits_teacher: (N, K), any float dtype; None where no teacher runs. A loss does not cut its gradient: run a
            frozen teacher without one.
        labels: (N,) int64.
        temperature: softens both networks' logits, above 0.
    """

    logits_student: Tensor
    logits_teacher: Tensor | None
    labels: Tensor
    temperature: float = 4.0


def cross_entropy(outputs: Outputs) -> Tensor:
    """Return the mean cross-entropy of the student's logits with the labels: a scalar in nats, at least float32."""
    return F.cross_entropy(_wide(outputs.logits_student), outputs.labels)


def hinton(outputs: Outputs) -> Tensor:
    """Return T² · mean_N KL(softmax(teacher / T) ‖ softmax(student / T)): a scalar in nats.

    Computed in float32 (float64 for float64 logits) whatever comes in: in bfloat16 softmax loses the small classes
    that distillation is about.

    Raises:
        ConfigError: there is no teacher, or the temperature is not above 0.

    Source: Hinton et al., arXiv 1503.02531, section 2; T² keeps the gradient's size when T changes. The role-kd code
    (`Soft_logits`) leaves T² out and uses T = 3: weight w here is weight 9 w there.
    """
    if outputs.logits_teacher is None:
        raise ConfigError("losses.hinton: no teacher's logits, got none; expected a teacher network")
    if not outputs.temperature > 0:
        raise ConfigError(f"temperature: got {outputs.temperature}; expected above 0")
    log_student = F.log_softmax(_wide(outputs.logits_student) / outputs.temperature, dim=1)
    log_teacher = F.log_softmax(_wide(outputs.logits_teacher) / outputs.temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return outputs.temperature**2 * divergence


LOSSES: dict[str, Callable[[Outputs], Tensor]] = {"cross_entropy": cross_entropy, "hinton": hinton}


def weighted_loss(weights: Mapping[str, float], outputs: Outputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of losses, and each loss itself (unweighted, detached).

    A loss of weight 0 is not computed and is not among the parts.

    Args:
        weights: names of `LOSSES` to weights, as `check_losses` accepts.
        outputs: of one batch.
    """
    losses = {name: LOSSES[name](outputs) for name, weight in weights.items() if weight != 0}
    assert losses, f"no loss has a weight: {dict(weights)}"
    total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
    return total, {name: loss.detach() for name, loss in losses.items()}


def check_losses(weights: Mapping[str, float], where: str) -> list[str]:
    """Return the problems of a section of loss weights: unknown names, weights that are not finite or below 0, none."""
    problems = [unknown_name(where, "loss", name, LOSSES) for name in weights if name not in LOSSES]
    for name, weight in weights.items():
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight) or weight < 0:
            problems.append(f"{where}.{name}: got {weight!r}; expected a finite number of at least 0")
    if not problems and not any(weights.values()):
        problems.append(f"{where}: got {dict(weights)}; expected at least one loss with a weight above 0")
    return problems


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
