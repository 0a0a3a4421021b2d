"""Attacks: images moved until a network errs. Plain functions of anything that maps images in [0, 1] to logits.

Gradients are taken with respect to the images alone: parameters keep the `.grad` they had. Buffers stay as they are in
evaluation mode, which the caller sets; normalisation belongs into `network`. Nothing here waits for the device.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]
"""(N, C, H, W) in [0, 1], of the images' dtype -> logits (N, K); a network of another dtype casts for itself."""

_OVER_THE_EDGE = 1e-4
_TINY = 1e-12


@torch.enable_grad()
def pgd(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return images moved, within `epsilon`, to where the cross-entropy with their labels is high.

    Where a network is so sure that float32 rounds its loss's gradient to 0, its images stay at their random start.

    Args:
        network: in evaluation mode.
        images: (N, C, H, W) float in [0, 1].
        labels: (N,) int64.
        epsilon: most that a value may change, in the images' unit: 8 / 255 is eight grey levels.
        step: change of every value per step.
        steps: number of steps.
        generator: of the random start, on any device; a CPU's gives all devices the same start.

    Returns:
        (N, C, H, W) in [0, 1], detached.

    Source: Madry et al., arXiv 1706.06083, section 2.1: steps along the gradient's sign, projected onto the L∞ ball,
    from a uniform random start. The start is clamped to [0, 1] too, which the study's code leaves to the first step.
    """
    _check_mode(network)
    images = images.detach()
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    start = torch.rand(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
    moved = (images + (2 * start.to(images.device) - 1) * epsilon).clamp(low, high)
    for _ in range(steps):
        leaf, logits = _forward(network, moved)
        # The sum: an image's gradient shall not shrink with the size of its batch
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
        moved = (moved + step * gradient.sign()).clamp(low, high)
    return moved


@torch.enable_grad()
def boundary_attack(
    network: Network, images: Tensor, targets: Tensor, *, steps: int = 10, step_size: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Return images moved just over the edge of the class the network gives them, and which of them got there.

    Let b be the class the network gives the untouched image, k the target, and d(x) = z_b(x) - z_k(x), above 0 on b's
    side. To first order d(x + δ) = d(x) + ∇d · δ, so the shortest way to d = 0 leads along -∇d, and its length is
    d / ‖∇d‖. The step goes that way, by η (d + 1e-4):

        x ← clamp(x - η (d + 1e-4) ∇d / ‖∇d‖, 0, 1)

    which is η ‖∇d‖ of the first-order distance: where the logits change steeply it crosses at once and lands beyond, on
    a plateau it creeps. The 1e-4 gets it over the edge. An image stops as soon as b is not its top class any more,
    whichever is. Where the target is b, or the gradient is 0, there is no way and the image stays.

    Args:
        network: in evaluation mode.
        images: (N, C, H, W) float in [0, 1].
        targets: (N,) int64, k.
        steps: most steps, 1 or more; each costs a pass forwards and backwards, and one more forwards follows the last.
        step_size: η.

    Returns:
        Moved images (N, C, H, W) in [0, 1], detached; and (N,) bool, where the top class is not b any more.

    Source: Heo et al., arXiv 1805.05532, as their code (BSS_distillation) and the study's (CURE) have it. The gradient
    is divided by its norm once. The `max_epsilon` of 16 that both set is read nowhere, so nothing bounds the way there,
    nor here. They clamp to [-2.5, 2.5] after normalisation (Heo) or to [0, 1] (study, and we). The paper's own formula
    was not read.
    """
    _check_mode(network)
    moved = images.detach()
    base: Tensor | None = None
    for _ in range(steps):
        leaf, logits = _forward(network, moved)
        base = logits.detach().argmax(1) if base is None else base
        gap = (logits.gather(1, base[:, None]) - logits.gather(1, targets[:, None]))[:, 0]
        (gradient,) = torch.autograd.grad(gap.sum(), leaf)
        length = gradient.flatten(1).norm(dim=1).clamp(min=_TINY)
        scale = torch.where(logits.argmax(1) == base, step_size * (gap.detach() + _OVER_THE_EDGE) / length, 0.0)
        moved = (moved - scale.to(moved.dtype).view(-1, 1, 1, 1) * gradient).clamp(0, 1)
    assert base is not None, f"steps: {steps}"
    with torch.no_grad():
        return moved, network(moved).argmax(1) != base


def _forward(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images as a leaf of a new graph, and its logits, at least float32."""
    leaf = images.detach().requires_grad_()
    return leaf, network(leaf).to(torch.promote_types(images.dtype, torch.float32))


def _check_mode(network: Network) -> None:
    assert not (isinstance(network, nn.Module) and network.training), "BatchNorm's buffers would follow the attack"
