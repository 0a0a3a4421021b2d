"""Keeping what distillation asks of a parameter within what the labels ask of it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rolekd_ray.training.sharding import Sharding


def clipped_backward(
    parameters: Sequence[nn.Parameter], task: Tensor, distillation: Tensor | None, epoch: int, sharding: Sharding
) -> None:
    """Leave g_task + clip(g_distillation, ‖g_task‖ · σ(epoch)) in the parameters' `.grad`, each parameter by itself.

    σ is the logistic function: half the task's norm in epoch 0, all of it soon. Weight decay is the optimiser's and
    counts for nothing here. Both gradients are summed over the workers before the clip, which is not linear. Other
    parameters that the distillation loss depends on, such as regressors', get their whole gradient.

    Args:
        parameters: of the network; their `.grad` is None or zero.
        task: loss of the labels, a scalar.
        distillation: the other losses' sum; None: there is none.
        epoch: from 0.
        sharding: this worker's place.

    Source: role-kd's code (`Optimizer_w_MHGD`), which takes it from Lee & Song's; it is in no paper that we know of.
    """
    of_task = list(torch.autograd.grad(task, parameters, retain_graph=distillation is not None, allow_unused=True))
    of_task = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, of_task, strict=True)]
    if sharding.workers > 1:
        sharding.sum_together(of_task)
    if distillation is not None:
        distillation.backward()
        found = [p.grad for p in parameters if p.grad is not None]
        if sharding.workers > 1 and found:
            sharding.sum_together(found)
    share = 1 / (1 + math.exp(-epoch))
    for parameter, gradient in zip(parameters, of_task, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient
            continue
        limit, norm = gradient.norm() * share, parameter.grad.norm()
        # A gradient of 0 divides by 1, as its product is 0 either way
        scale = (limit / torch.where(norm > 0, norm, 1.0)).clamp(max=1.0)
        parameter.grad.mul_(scale).add_(gradient)
