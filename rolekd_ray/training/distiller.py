"""Running student and teacher on one batch, and gathering what the losses look at."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from rolekd_ray.distill.capture import Capture
from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.outputs import Networks, Outputs
from rolekd_ray.training.batch import Batch
from rolekd_ray.training.branches import Branch, branches_of
from rolekd_ray.training.precision import autocast
from rolekd_ray.training.sharding import Sharding


class Distiller:
    """The forward passes of a student's steps.

    Args:
        losses: the student's; they say which layers are read and what else is needed.
        student: the network that learns.
        teacher: frozen, or learning along; None: there is none.
        view_mode: which role's view feeds which network.
        two_branches: whether the student also sees the plain view; without a teacher it never does.
        dtype: in which networks compute.
        sharding: this worker's place.
        normalisation: mean and standard deviation of the channels, (C,) each.
    """

    def __init__(
        self, losses: Losses, student: nn.Module, teacher: nn.Module | None, *, view_mode: str, dtype: torch.dtype,
        sharding: Sharding, normalisation: tuple[Tensor, Tensor], two_branches: bool = False,
    ):  # fmt: skip
        self.two_branches = two_branches and teacher is not None
        self.losses, self.student, self.teacher = losses, student, teacher
        self.view_mode, self.dtype, self.sharding, self.normalisation = view_mode, dtype, sharding, normalisation
        self.of_student = Capture(student, losses.layers_of("student"))
        self.of_teacher = Capture(teacher, losses.layers_of("teacher")) if teacher is not None else None

    def outputs(
        self, batch: Batch, *, temperature: float, progress: float, generator: torch.Generator | None = None
    ) -> list[Outputs]:
        """Run the networks on a batch and return what they put out, by branch.

        One branch, of the agents' view; with `branches` two, the plain view's first. A teacher is run in evaluation
        mode and without a gradient, so its buffers stay untouched; one that is a peer as it trains. First the teacher,
        then the student, which sees all branches in one pass.
        """
        teach = self._teach_unseen if self.teacher is not None else self._learn_unseen  # who has none picks alone
        branches = branches_of(
            batch, self.view_mode, plain=self.two_branches, teach=teach, learn=self._learn_unseen,
            sharding=self.sharding, temperature=temperature, keep_answers=not self.losses.layers_of("teacher"),
        )  # fmt: skip
        taught = [self._teach(branch) for branch in branches]
        first = branches[0]
        logits_self, of_self = self._teach_self(first.for_student, first.for_teacher, first.count)
        learned = self._learn(branches)
        if logits_self is None and self.losses.takes("logits_self"):  # one view, so one pass serves both
            logits, of_student = learned[0]
            logits_self, of_self = logits.detach(), {name: value.detach() for name, value in of_student.items()}
        needs_networks = self.losses.takes("networks") and self.teacher is not None
        return [
            Outputs(
                logits_student=logits,
                logits_teacher=logits_teacher,
                labels=branch.labels,
                temperature=temperature,
                progress=progress,
                indices=branch.indices,
                generator=generator,
                features_student=of_student,
                features_teacher=of_teacher,
                logits_self=logits_self,
                features_self=of_self,
                one_view=branch.for_student is branch.for_teacher,
                view=self.sharding.gather(branch.for_student, branch.count) if self.losses.takes("view") else None,
                networks=self._networks() if needs_networks else None,
                picked_ratio=branch.picked_ratio,
            )
            for branch, (logits, of_student), (logits_teacher, of_teacher) in zip(branches, learned, taught)
        ]

    @property
    def taught_by(self) -> nn.Module:
        """The teacher."""
        assert self.teacher is not None
        return self.teacher

    def teacher_rows(self, view: Tensor) -> Tensor:
        """Return the teacher's logits on some rows, in its present mode."""
        with autocast(self.dtype, view.device):
            return self.taught_by(view.to(_dtype_of(self.taught_by)))

    def student_rows(self, view: Tensor) -> Tensor:
        """Return the student's logits on some rows, in its present mode."""
        with autocast(self.dtype, view.device):
            return self.student(view)

    def _teach_unseen(self, view: Tensor) -> Tensor:
        with evaluating(self.taught_by), torch.no_grad():
            return self.teacher_rows(view)

    def _learn_unseen(self, view: Tensor) -> Tensor:
        with evaluating(self.student), torch.no_grad():  # its buffers must not learn from what is not picked
            return self.student_rows(view)

    def _teach(self, branch: Branch) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        if self.teacher is None or self.of_teacher is None or not self.losses.needs_teacher:
            return None, {}
        if branch.logits_teacher is not None:  # of its scoring: the pass is not repeated
            return branch.logits_teacher, {}
        view, count = branch.for_teacher, branch.count
        if self.losses.online == "peer":
            return self._run(self.teacher, view, self.of_teacher, count)
        with evaluating(self.teacher), torch.no_grad():
            return self._run(self.teacher, view.to(_dtype_of(self.teacher)), self.of_teacher, count)

    def _teach_self(
        self, for_student: Tensor, for_teacher: Tensor, count: int
    ) -> tuple[Tensor | None, Mapping[str, Tensor]]:
        if not self.losses.takes("logits_self") or for_student is for_teacher:
            return None, {}
        with evaluating(self.student), torch.no_grad():
            return self._run(self.student, for_teacher, self.of_student, count)

    def _learn(self, branches: list[Branch]) -> list[tuple[Tensor, Mapping[str, Tensor]]]:
        if len(branches) == 1:
            return [self._run(self.student, branches[0].for_student, self.of_student, branches[0].count)]
        views = [branch.for_student for branch in branches]
        together = torch.cat(views).contiguous(memory_format=torch.channels_last)
        logits = self.forward(self.student, together, self.of_student)
        features = dict(self.of_student.features)
        self.of_student.clear()
        rows = [len(view) for view in views]
        return [
            (
                self.sharding.gather(part, branch.count),
                {
                    name: self.sharding.gather(value.split(rows)[place], branch.count)
                    for name, value in features.items()
                },
            )
            for place, (part, branch) in enumerate(zip(logits.split(rows), branches))
        ]

    def _run(
        self, network: nn.Module, view: Tensor, capture: Capture, count: int
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the whole batch's logits and features; the view holds this worker's rows."""
        logits = self.forward(network, view, capture)
        features = {name: self.sharding.gather(value, count) for name, value in capture.features.items()}
        capture.clear()
        return self.sharding.gather(logits, count), features

    def forward(self, network: nn.Module, view: Tensor, capture: Capture) -> Tensor:
        """Return a network's logits on this worker's rows."""
        with autocast(self.dtype, view.device), capture:
            return network(view)

    def _networks(self) -> Networks:
        teacher = self.teacher
        assert teacher is not None

        def teach(images: Tensor) -> Tensor:
            with evaluating(teacher), autocast(self.dtype, images.device):
                return teacher(images.to(_dtype_of(teacher)))

        def learn(images: Tensor) -> Tensor:
            with autocast(self.dtype, images.device):
                return self.student(images)

        return Networks(learn, teach, *self.normalisation, self.sharding)


def seen_by_peer(outputs: Outputs) -> Outputs:
    """Return a batch as the peer sees it: it is the student now, and the student its teacher."""
    assert outputs.logits_teacher is not None
    return replace(outputs, logits_student=outputs.logits_teacher, logits_teacher=outputs.logits_student.detach())


def seen_by_student(outputs: Outputs) -> Outputs:
    """Return a batch whose teacher is no part of the student's gradient."""
    return replace(
        outputs,
        logits_teacher=outputs.logits_teacher.detach() if outputs.logits_teacher is not None else None,
        features_teacher={name: value.detach() for name, value in outputs.features_teacher.items()},
    )


@contextmanager
def evaluating(network: nn.Module):
    """Put a network into evaluation mode, and back into its own."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _dtype_of(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype
