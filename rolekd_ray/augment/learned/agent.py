"""The learned agent: an augmentor, its optimiser, and the gate that says when it learns. HARD-style."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.augmentor import Augmentor
from rolekd_ray.augment.learned.gate import Gate
from rolekd_ray.augment.learned.objective import changes, divergence, kept
from rolekd_ray.augment.randomness import normals, stream_key
from rolekd_ray.errors import CheckpointError, ConfigError, unknown_name
from rolekd_ray.roles import Role

Network = Callable[[Tensor], Tensor]
"""(n, C, H, W) float32 normalised -> logits (n, K), in evaluation mode; one of another dtype casts for itself."""
CHANGES_TEMPERATURE = 1.0
"""Softened as for distillation, at 4, the answers of a student half way and of its teacher change alike."""
EVOLVABLE = ("learning_rate", "lower", "upper", "max_steps", "student_weight", "teacher_weight")
"""Settings that `configure` takes."""


def _own_rows(rows: Tensor, count: int) -> Tensor:
    return rows


def _own_gradients(gradients: list[Tensor]) -> None:
    pass


class LearnedAgent(nn.Module):
    """Makes views by an augmentor that learns to change the student's output and not the teacher's.

    The caller alternates: while `gate.phase` is "student" it trains the student on views; while it is "augmentor" it
    calls `step`. After either it tells the gate the student's loss on the views.

    Args:
        augmentor: what is learned: its parameters that require gradients. On its device before the first step.
        learning_rate: of Adam.
        lower: see `Gate`, as `upper` and `max_steps`.
        upper: nats of distillation loss, T² included.
        max_steps: steps of one phase.
        student_weight: of the student's change; at least 0.
        teacher_weight: of the teacher's, which counts against; at least 0. At 0 the augmentor may move the teacher too.
        clip_norm: longest gradient, all parameters together.

    Raises:
        ConfigError: a setting out of its range.

    Source: HARD-style, after arXiv 2305.14890: its idea stands in the abstract. Objective, gate and all defaults are a
    recollection and a design (unverified, not the paper's).
    """

    def __init__(
        self,
        augmentor: Augmentor,
        *,
        learning_rate: float = 5e-3,
        lower: float = 0.05,
        upper: float = 1.5,
        max_steps: int = 60,
        student_weight: float = 1.0,
        teacher_weight: float = 1.0,
        clip_norm: float = 1.0,
    ):
        super().__init__()
        self.augmentor, self.clip_norm = augmentor, clip_norm
        self.gate = Gate(lower, upper, max_steps)
        self.steps = 0
        """Steps of the augmentor so far."""
        self._learned = [parameter for parameter in augmentor.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(self._learned, learning_rate, maximize=True)
        self.configure(learning_rate=learning_rate, student_weight=student_weight, teacher_weight=teacher_weight)

    def configure(self, **settings: float) -> None:
        """Take the values of an epoch; what is not named stays. Thresholds that crossed are repaired (`ordered`).

        Args:
            settings: of `EVOLVABLE`.

        Raises:
            ConfigError: an unknown setting, or a value out of its range; nothing was changed.
        """
        problems = [unknown_name("learned", "setting", name, EVOLVABLE) for name in settings if name not in EVOLVABLE]
        rules = {"learning_rate": "above 0", "max_steps": "1 or above"}
        for name, value in settings.items():
            if name not in EVOLVABLE or name in ("lower", "upper"):  # the gate checks these
                continue
            rule = rules.get(name, "0 or above")
            fits = value > 0 if name == "learning_rate" else value >= (1 if name == "max_steps" else 0)
            problems += [] if fits and math.isfinite(value) else [f"learned: {name}: got {value}; expected {rule}"]
        if problems:
            raise ConfigError(*problems)
        if settings.keys() & {"lower", "upper"}:
            self.gate.move(settings.get("lower", self.gate.lower), settings.get("upper", self.gate.upper))
        self.gate.max_steps = int(settings.get("max_steps", self.gate.max_steps))
        if "learning_rate" in settings:
            self.optimizer.param_groups[0]["lr"] = settings["learning_rate"]
        self.student_weight = settings.get("student_weight", getattr(self, "student_weight", 1.0))
        self.teacher_weight = settings.get("teacher_weight", getattr(self, "teacher_weight", 1.0))

    @torch.no_grad()
    def view(self, views: Tensor, indices: Tensor, *, seed: int, role: Role, epoch: int) -> Tensor:
        """Return the views as the augmentor changes them now: a pure function of the arguments and its parameters.

        Args:
            views: (N, C, H, W) float32 normalised; not written to.
            indices: each image's place in its dataset, (N,) int64, on the same device.
            seed: the run's seed.
            role: whose view this is.
            epoch: epoch of the training, from 0.
        """
        noise = normals(stream_key(seed, role, epoch, "learned"), indices, self.augmentor.noise)
        return self.augmentor(views, noise)

    def step(
        self,
        views: Tensor,
        indices: Tensor,
        *,
        count: int,
        seed: int,
        role: Role,
        epoch: int,
        student: Network,
        teacher: Network,
        temperature: float,
        gather: Callable[[Tensor, int], Tensor] = _own_rows,
        add_up: Callable[[list[Tensor]], None] = _own_gradients,
    ) -> dict[str, Tensor]:
        """Take one step of the augmentor up its objective, on this worker's rows of a batch.

        Nothing else changes: gradients are taken with respect to the augmentor alone, so networks keep the `.grad`
        they had, frozen or not. Each step draws noise of its own. Every worker must call it, and each ends with the
        same parameters. A gradient that is not finite spoils them: the caller looks at `objective`, as at any loss.

        Args:
            views: (n, C, H, W) float32 normalised, before this agent.
            indices: places in the dataset, (n,) int64.
            count: rows of the whole batch.
            seed: the run's seed.
            role: whose agent this is.
            epoch: epoch of the training, from 0.
            student: run twice, on views and on changed views; its gradient flows through the latter.
            teacher: the same; frozen or not.
            temperature: T of the loss that the gate is told.
            gather: all workers' rows of this worker's, as `training.sharding.Sharding.gather`; default: a worker alone.
            add_up: replaces gradients by their sums over workers, in place; default: a worker alone.

        Returns:
            Scalars, detached, the same on every worker: `objective`; `student_change` and `teacher_change`, D_s and
            D_t; `kept`, the share of views that keep the teacher's top class; `gradient_norm`, before clipping; and
            `student_loss`, T² · KL(teacher ‖ student) on the changed views, before the step: what the gate is told.
        """
        key = stream_key(seed, role, epoch, "learned step", self.steps)
        noise = normals(key, indices, self.augmentor.noise)
        with torch.no_grad():
            student_clean, teacher_clean = (gather(network(views).float(), count) for network in (student, teacher))
        with torch.enable_grad():
            changed = self.augmentor(views.detach(), noise)
            student_view, teacher_view = (gather(network(changed).float(), count) for network in (student, teacher))
            own, its = changes(student_clean, student_view, teacher_clean, teacher_view, CHANGES_TEMPERATURE)
            objective = self.student_weight * own - self.teacher_weight * its
            gradients = list(torch.autograd.grad(objective, self._learned))
        add_up(gradients)
        norm = self._ascend(gradients)
        loss = temperature**2 * divergence(teacher_view.detach(), student_view.detach(), temperature)
        return {
            "objective": objective.detach(),
            "student_change": own.detach(),
            "teacher_change": its.detach(),
            "kept": kept(teacher_clean, teacher_view.detach()),
            "gradient_norm": norm,
            "student_loss": loss,
        }

    def _ascend(self, gradients: list[Tensor]) -> Tensor:
        """Clip the gradient, take Adam's step, and return the length that the gradient had."""
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in gradients]))
        share = (self.clip_norm / (norm + 1e-12)).clamp(max=1)
        for parameter, gradient in zip(self._learned, gradients):
            parameter.grad = gradient * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return norm

    def tree(self) -> dict[str, Any]:
        """Return everything that goes on: parameters, optimiser, gate, settings; tensors and plain data."""
        return {
            "augmentor": self.augmentor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "gate": self.gate.state(),
            "steps": self.steps,
            "student_weight": self.student_weight,
            "teacher_weight": self.teacher_weight,
        }

    def load_tree(self, tree: Mapping[str, Any]) -> None:
        """Become the agent whose tree this is: the next step is the one that it would have taken, to the last bit.

        Raises:
            CheckpointError: it is of an augmentor of other parts, or no such tree.
        """
        missing = self.tree().keys() - tree.keys()
        if missing or tree["gate"].keys() != self.gate.state().keys():
            what = ", ".join(sorted(missing)) or "a gate of other keys"
            raise CheckpointError(
                f"learned: not the state of a learned agent: got {what} missing or changed; expected it"
            )
        try:
            self.augmentor.load_state_dict(tree["augmentor"])
        except RuntimeError as error:
            own = ", ".join(self.augmentor.parts)
            raise CheckpointError(f"learned: of another augmentor: {error}; expected one of the parts {own}") from error
        self.optimizer.load_state_dict(deepcopy(tree["optimizer"]))  # else both agents would share moments
        self.gate.load(tree["gate"])
        self.steps = tree["steps"]
        self.student_weight, self.teacher_weight = tree["student_weight"], tree["teacher_weight"]
