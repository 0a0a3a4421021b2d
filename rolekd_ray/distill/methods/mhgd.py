"""Multi-head graph distillation: how images attend to each other between adjacent layers."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rolekd_ray.distill.methods.svd import aligned_vectors
from rolekd_ray.distill.registry import method
from rolekd_ray.distill.singular import singular_vectors
from rolekd_ray.errors import ConfigError

_DECAY = 5e-4
_LEAST_SQUARE = 1e-6
"""Bounds the gradient of an estimate's direction where it is 0, as for a black image."""


@method("mhgd", layers="stages", match=True, rk2020={"warm_up": 0.0, "sum_over_batch": True})
class MultiHeadGraph(nn.Module):
    """Sum over adjacent layers of KL(softmax tanh G_s ‖ softmax tanh G_t): a scalar in nats.

    G (heads, N, N) is what attention says of singular vectors of two adjacent layers, of the student's (as `svd` picks
    them) or of the teacher's. A row of it is a softmax over the batch; rows are averaged over images, heads summed.

    The attention is trained before it is used, and on the teacher's vectors alone: in the first `warm_up` of the
    training the loss is the attention's own, the sum over adjacent layers of mean (1 - cos(V̂, V)), V̂ the later layer's
    vectors as estimated from the earlier one's, plus 5e-4 times the sum of its squared parameters. The student gets no
    gradient from it. Afterwards the attention stands still, and only the student (and its regressors, where channels
    differ) gets a gradient. So the loss jumps once; the method's weight scales both.

    Args:
        shapes_teacher: (C, H, W) or (D,) each, two or more, from shallow to deep.
        heads: of the attention.
        warm_up: share of the training in which the attention learns, in [0, 1]; 0 leaves it as it was initialised.
        sum_over_batch: whether rows are summed over images, as the role-kd code does, in place of their mean. The
            gradient then grows with the batch, which that code undoes by clipping it to the cross-entropy's.

    Raises:
        ConfigError: fewer than two layers.

    Source: Lee and Song, arXiv 1907.02226, as the role-kd code has it (`MHGD`): 4 heads where the authors' code has 8.
    The authors' code trains the attention in the first 40 of 140 epochs, in which the student learns nothing; here the
    student learns by its other losses meanwhile. The role-kd code never trains the attention (rk2020). BatchNorm's
    momentum, the mean over images and regressors are ours; Xavier's initial weights as role-kd's linear layers.
    """

    def __init__(
        self,
        shapes_teacher: Sequence[Sequence[int]],
        *,
        heads: int = 4,
        warm_up: float = 40 / 140,
        sum_over_batch: bool = False,
    ):
        super().__init__()
        if len(shapes_teacher) < 2:
            raise ConfigError(f"distill.layers.mhgd: got {len(shapes_teacher)} layers; expected two or more")
        self.warm_up, self.sum_over_batch = warm_up, sum_over_batch
        widths = [shape[0] for shape in shapes_teacher]
        self.attentions = nn.ModuleList(Attention(*pair, heads) for pair in pairwise(widths))
        self.estimators = nn.ModuleList(Estimator(*pair, heads) for pair in pairwise(widths))

    def forward(
        self,
        features_student: list[Tensor],
        features_teacher: list[Tensor],
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss of features (N, C, …), the student's with the teacher's numbers of channels."""
        if progress < self.warm_up:
            return self.attention_loss(features_teacher, generator)
        return self.distillation_loss(features_student, features_teacher)

    def attention_loss(self, features_teacher: list[Tensor], generator: torch.Generator) -> Tensor:
        """Return what trains the attention, from the teacher's features."""
        vectors = [singular_vectors(features.detach(), 1)[:, 0] for features in features_teacher]
        errors = []
        for earlier, later, attention, estimator in self._layers(vectors):
            estimate = estimator(earlier, attention(earlier, later, learns=True), generator)
            errors.append((1 - (estimate * later).sum(1)).mean())
        squares = torch.stack([parameter.square().sum() for parameter in self.parameters()])
        return torch.stack(errors).sum() + _DECAY * squares.sum()

    def distillation_loss(self, features_student: list[Tensor], features_teacher: list[Tensor]) -> Tensor:
        """Return what trains the student; the attention's parameters get no gradient."""
        student, teacher = zip(*aligned_vectors(features_student, features_teacher, "mhgd"), strict=True)
        graphs = [
            [attention(earlier, later, learns=False).tanh() for earlier, later, attention, _ in self._layers(vectors)]
            for vectors in (student, teacher)
        ]
        total = torch.stack([_divergence(own, wanted) for own, wanted in zip(*graphs, strict=True)]).sum()
        return total if self.sum_over_batch else total / len(features_student[0])

    def _layers(self, vectors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, "Attention", "Estimator"]]:
        pairs = zip(pairwise(vectors), self.attentions, self.estimators, strict=True)
        return [(earlier, later, attention, estimator) for (earlier, later), attention, estimator in pairs]  # type: ignore[misc]


class Attention(nn.Module):
    """How much each image's later vector attends to each image's earlier one.

    Args:
        earlier: channels of the earlier layer.
        later: channels of the later layer.
        heads: independent ones.
    """

    def __init__(self, earlier: int, later: int, heads: int):
        super().__init__()
        self.heads = heads
        inner = (earlier + later) // 2
        self.send = NormalisedLinear(later, inner * heads)
        self.receive = NormalisedLinear(earlier, inner * heads)

    def forward(self, earlier: Tensor, later: Tensor, *, learns: bool) -> Tensor:
        """Return (heads, N, N), rows by later vectors; see `NormalisedLinear` for `learns`."""
        sent = self.send(later, learns=learns).unflatten(1, (self.heads, -1))
        received = self.receive(earlier, learns=learns).unflatten(1, (self.heads, -1))
        return torch.einsum("ahd,bhd->hab", sent, received)


class Estimator(nn.Module):
    """Estimates later vectors from earlier ones and the attention between them; teaches the attention, then rests."""

    def __init__(self, earlier: int, later: int, heads: int):
        super().__init__()
        inner = (earlier + later) // 2
        self.enter = NormalisedLinear(earlier, inner)
        self.leave = nn.Linear(inner * heads, later)
        nn.init.xavier_uniform_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, earlier: Tensor, graph: Tensor, generator: torch.Generator) -> Tensor:
        """Return vectors (N, C) of length 1; of each image, heads that draw less than the heads' mean are dropped.

        Args:
            earlier: (N, C').
            graph: (heads, N, N), before its softmax.
            generator: of what they draw, normal numbers.
        """
        noise = torch.randn(*graph.shape[:2], 1, generator=generator, device=graph.device)
        shares = graph.softmax(2) * (noise > noise.mean(0))
        hidden = shares @ self.enter(earlier, learns=True).relu()
        estimate = self.leave(hidden.transpose(0, 1).flatten(1))
        return estimate * (estimate.square().sum(1, keepdim=True) + _LEAST_SQUARE).rsqrt()


class NormalisedLinear(nn.Module):
    """A linear layer without bias, then BatchNorm."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, vectors: Tensor, *, learns: bool) -> Tensor:
        """Map (N, width_in) to (N, width).

        Args:
            vectors: of a batch.
            learns: whether parameters get a gradient and statistics are the batch's, as BatchNorm has them in training;
                else neither parameters nor running statistics change, and the latter are used. So they are for a batch
                of one.
        """
        parameters = self.linear.weight, self.norm.weight, self.norm.bias
        weight, scale, shift = parameters if learns else (parameter.detach() for parameter in parameters)
        mean, variance = self.norm.running_mean, self.norm.running_var
        by_batch = learns and len(vectors) > 1
        return F.batch_norm(F.linear(vectors, weight), mean, variance, scale, shift, training=by_batch)


def _divergence(own: Tensor, wanted: Tensor) -> Tensor:
    log_own, log_wanted = own.log_softmax(2), wanted.log_softmax(2)
    return (log_own.exp() * (log_own - log_wanted)).sum()
