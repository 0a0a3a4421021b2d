"""On-the-fly native ensemble: branches of one network teach each other through their gated sum."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rolekd_ray.distill.methods.hinton import hinton
from rolekd_ray.distill.registry import method
from rolekd_ray.errors import ConfigError
from rolekd_ray.models.initial import he_initialise
from rolekd_ray.models.tail import tail_of


@method("one", layers="split", online="self", soft_labels=True)
class One(nn.Module):
    """Σ CE(other branches) + CE(ensemble) + ramp · Σ T² KL(ensemble ‖ branch), beside the student's own cross-entropy.

    The student is the first branch. Each further one is a copy of all that comes after the last stage but one, with
    weights of its own; a gate on that layer weighs the branches, image by image.

    There is no teacher network; the ensemble teaches. The teacher *role* is the view on which it does: under the shared
    view modes that of the branches, else the trunk and all branches are run on the teacher's view once more, without
    gradient and with running BatchNorm statistics, and their ensemble on it is the target. In the protocol `sequential`
    the teacher's schedule is found first, by the network that `teacher.model` names, alone.

    A finished training keeps the branch that is best on the validation images, as a plain network.

    Args:
        shapes_student: of the layer where branches part, (C, H, W).
        layers_student: its name.
        student: the network.
        branches: at least 2, the student among them.
        ramp: share of the training in which the factor rises as exp(-5 (1 - progress / ramp)²) to 1; 0: 1 throughout.

    Raises:
        ConfigError: fewer than 2 branches, or the network cannot be cut at that layer.

    Dropout in a branch is drawn apart by each worker; the zoo's networks have none.

    Source: Lan, Zhu, Gong, arXiv 1806.04606 (recalled, not read again); 3 branches and 80 of 300 epochs as in its code,
    which has T = 3; here T is the run's unless the options say otherwise. There the gate is a linear layer, BatchNorm,
    ReLU and softmax on globally pooled features; so here. The study (arXiv 2007.01922) reports the branch that is best
    on *test* images; we choose on validation.
    """

    def __init__(
        self, shapes_student: list[tuple[int, ...]], layers_student: list[str], student: nn.Module, *,
        branches: int = 3, ramp: float = 80 / 300,
    ):  # fmt: skip
        super().__init__()
        if branches < 2:
            raise ConfigError(f"distill.options.one.branches: got {branches}; expected at least 2")
        self.ramp = ramp
        self.branches = nn.ModuleList(_fresh(tail_of(student, layers_student[0])) for _ in range(branches - 1))
        self.gate = nn.Sequential(nn.Linear(shapes_student[0][0], branches), nn.BatchNorm1d(branches), nn.ReLU())

    def forward(
        self, logits_student: Tensor, features_student: list[Tensor], logits_self: Tensor, features_self: list[Tensor],
        labels: Tensor, one_view: bool = True, progress: float = 1.0, temperature: float = 3.0,
    ) -> Tensor:  # fmt: skip
        """Return the loss, a scalar in nats.

        `logits_self` and `features_self` are the student's on the view that teaches; not looked at if that is the
        student's own.
        """
        answers = [logits_student, *(branch(features_student[0]) for branch in self.branches)]
        ensemble = self._ensemble(answers, features_student[0])
        target = ensemble.detach() if one_view else self._target(logits_self, features_self[0])
        losses = [F.cross_entropy(answer, labels) for answer in [*answers[1:], ensemble]]
        losses += [self._factor(progress) * hinton(answer, target, temperature) for answer in answers]
        return torch.stack(losses).sum()

    def members(self) -> list[nn.Module]:
        """Return the other branches; each one's state fits into the student."""
        return list(self.branches)

    def _ensemble(self, answers: list[Tensor], features: Tensor) -> Tensor:
        weights = self.gate(features.mean((2, 3))).softmax(1)
        return torch.einsum("nb,bnk->nk", weights, torch.stack(answers))

    @torch.no_grad()
    def _target(self, logits: Tensor, features: Tensor) -> Tensor:
        training = self.training
        self.eval()
        target = self._ensemble([logits, *(branch(features) for branch in self.branches)], features)
        self.train(training)
        return target

    def _factor(self, progress: float) -> float:
        if progress >= self.ramp:
            return 1.0
        return math.exp(-5 * (1 - progress / self.ramp) ** 2)


def _fresh(branch: nn.Module) -> nn.Module:
    """Draw new weights: branches that start equal would stay equal."""
    for module in branch.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    he_initialise(branch)
    return branch
