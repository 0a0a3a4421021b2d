"""One training over several workers: each computes some rows of every batch, together they take the step of one.

Every worker gathers the whole batch's logits, a few kilobytes, and computes the same loss on them; backwards each keeps
the gradient of its own rows, and the parameters' gradients are summed. So a loss that relates images to each other
needs no code of its own, no factor depends on how rows are dealt out, and uneven batches are exact.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Sharding:
    """A worker's place among those that train one member; `Sharding()` is a worker alone, for which all is free.

    `group` carries tensors (gloo or NCCL; None: the default group), `talk` small Python objects (gloo, so that
    commands neither wait for nor disturb NCCL).
    """

    rank: int = 0
    workers: int = 1
    group: dist.ProcessGroup | None = None
    talk: dist.ProcessGroup | None = None

    def rows(self, batch: Tensor) -> Tensor:
        """Return this worker's rows of a batch: runs of equal length, the first ones longer by at most one row."""
        return batch.tensor_split(self.workers)[self.rank]

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return all workers' rows of a batch of `count`; backwards, this worker's rows get their gradient.

        Args:
            rows: (n, …) floats, made from `self.rows` of the batch; n may be 0.
            count: rows of the whole batch.

        Returns:
            (count, …), in the order of the batch, the same bits on every worker.
        """
        return rows if self.workers == 1 else _Gather.apply(rows, count, self)

    def sum_gradients(self, network: nn.Module) -> None:
        """Add up all workers' gradients, in place; the same bits on every worker. One message, not overlapped."""
        if self.workers > 1:
            self.sum_together([p.grad for p in network.parameters() if p.grad is not None])

    def sum_together(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over the workers, by one message; a worker alone keeps its own."""
        if self.workers == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self.group)
        for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view(tensor.shape))

    def mean_buffers(self, network: nn.Module) -> None:
        """Replace buffers of floats, such as running statistics, by their means over the workers."""
        buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        if self.workers > 1 and buffers:
            self.sum_together(buffers)
            for buffer in buffers:
                buffer.div_(self.workers)

    def decided_by_first(self, decide: Callable[[], T]) -> T:
        """Return what the first worker finds, on every worker: storage may look different from another node."""
        box: list[Any] = [decide() if self.rank == 0 else None]
        if self.workers > 1:
            dist.broadcast_object_list(box, src=0, group=self.talk)
        return box[0]


ALONE = Sharding()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int, sharding: Sharding) -> Tensor:
        sizes = [len(part) for part in torch.arange(count).tensor_split(sharding.workers)]
        start = sum(sizes[: sharding.rank])
        ctx.own = start, start + len(rows)
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])  # messages of one length
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=sharding.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        start, end = ctx.own
        return gradients[0][start:end], None, None
