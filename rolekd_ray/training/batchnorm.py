"""BatchNorm over several workers."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from rolekd_ray.training.sharding import Sharding

_KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def share_batchnorm(network: nn.Module, mode: Literal["sync", "local"], sharding: Sharding) -> None:
    """Make a network's BatchNorms fit for a batch dealt out to workers, in place; names and parameters stay.

    Args:
        network: any; a worker alone leaves it as it is.
        mode: `sync`: statistics of the whole batch, as one worker has them. `local`: each worker's rows have their own
            statistics, so results depend on the number of workers; the running statistics are the workers' mean once
            `Sharding.mean_buffers` was called.
        sharding: this worker's place.
    """
    if sharding.workers == 1:
        return
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, _KINDS):
                setattr(module, name, _shared(child, sharding if mode == "sync" else None))


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose training statistics are those of all workers' rows; without `sharding`, of this worker's rows.

    torch's own SyncBatchNorm refuses CPUs. A worker without rows takes part with none.
    """

    sharding: Sharding | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (n, C, …)."""
        if not self.training:
            return super().forward(input)
        if self.sharding is None:
            if input.numel() > input.shape[1]:
                return super().forward(input)
            # One value per channel has no deviation, none no mean; an error here would leave the others waiting
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        count, mean, variance = _statistics(input.detach(), self.sharding)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return _Normalise.apply(input, self.weight, self.bias, mean, variance, count, self.eps, self.sharding)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""


def _shared(module: nn.Module, sharding: Sharding | None) -> SharedBatchNorm:
    assert isinstance(module, _KINDS)
    shared = SharedBatchNorm.__new__(SharedBatchNorm)
    shared.__dict__.update(module.__dict__)  # the very same parameters: optimisers hold them
    shared.sharding = sharding
    return shared


def _statistics(rows: Tensor, sharding: Sharding) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many values per channel all workers have (), their mean and variance (C,), at least float32.

    Source: Chan, Golub, LeVeque 1983: means and squared distances are merged; sums of squares would cancel.
    """
    channels, dtype = rows.shape[1], torch.promote_types(rows.dtype, torch.float32)
    own = torch.zeros(1 + 2 * channels, dtype=dtype, device=rows.device)
    if len(rows):
        # What torch's own BatchNorm computes; `torch.var_mean` takes 10 to 30 times as long in channels_last
        unused = own[:channels], own[channels : 2 * channels]  # running statistics, whose type is the result's
        mean, variance = torch.batch_norm_update_stats(rows, unused[0], unused[1], 0.0)
        own = torch.cat([own.new_full((1,), rows.numel() / channels), mean, variance])
    counts, means, variances = _of_all(own, sharding).double().split([1, channels, channels], dim=1)
    count = counts.sum()
    share = counts / count
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    return count, mean.to(dtype), variance.to(dtype)


def _of_all(own: Tensor, sharding: Sharding) -> Tensor:
    """Return every worker's vector, (workers, n). For short ones faster than an all-reduce, which takes two rounds."""
    every = own.new_empty(sharding.workers * len(own))
    dist.all_gather_into_tensor(every, own, group=sharding.group)
    return every.view(sharding.workers, -1)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor,
        count: Tensor, eps: float, sharding: Sharding,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(rows, weight, mean, variance)
        ctx.count, ctx.eps, ctx.sharding = count, eps, sharding
        return F.batch_norm(rows, mean, variance, weight, bias, training=False, eps=eps) if len(rows) else rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Take the gradient with fixed statistics, a fused kernel, and add what flows through the statistics.

        With y = w x̂ + b and N values per channel: dx = w / σ (dy - Σdy / N - x̂ Σ(dy x̂) / N), sums over all workers.
        """
        rows, weight, mean, variance = ctx.saved_tensors
        gradient, (channels,) = gradients[0], mean.shape
        if len(rows):
            _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, rows, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
        else:
            of_weight, of_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        sums = _of_all(torch.cat([of_weight, of_bias]), ctx.sharding).sum(0).view(2, channels)
        if len(rows):
            scale = (variance + ctx.eps).rsqrt()
            scale = scale if weight is None else scale * weight
            slope, offset = sums * (scale / -ctx.count)
            # The forward kernel multiplies x̂, or any tensor with mean 0 and variance 1, by one vector and adds another
            still = torch.zeros_like(mean), torch.ones_like(mean)
            # Not `F.batch_norm`, which refuses eps 0 in torch 2.11
            gradient = torch.batch_norm(gradient, scale, offset, *still, False, 0.0, 0.0, torch.backends.cudnn.enabled)
            gradient.add_(F.batch_norm(rows, mean, variance, slope, None, training=False, eps=ctx.eps))
        own = (None, None) if weight is None else (of_weight, of_bias)
        return gradient, *own, None, None, None, None, None
