"""The steps of a training: what each network learns from one batch, and its update."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from rolekd_ray.config import Settings
from rolekd_ray.distill.losses import Losses, weighted_sum
from rolekd_ray.distill.methods.cross_entropy import cross_entropy
from rolekd_ray.distill.methods.hinton import hinton
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.errors import TrainingError
from rolekd_ray.roles import Role
from rolekd_ray.training.batch import Batch, decides
from rolekd_ray.training.clipping import clipped_backward
from rolekd_ray.training.distiller import Distiller, evaluating, seen_by_peer, seen_by_student
from rolekd_ray.training.learner import Learner, learning_rate_factor
from rolekd_ray.training.losses import FROM_LABELS, weights_of
from rolekd_ray.training.picks import picked
from rolekd_ray.training.precision import autocast
from rolekd_ray.training.sharding import Sharding

Lesson = tuple[Role, Mapping[str, float], dict[str, Tensor]]
"""Who learns, the weights of its losses, and the losses."""


class Steps:
    """Takes steps with a learner's networks, batch by batch.

    Args:
        settings: of the run.
        learner: equipped; changed in place.
        teacher: of the student, frozen or one of the learner's; None: there is none.
        dtype: in which networks compute.
        sharding: this worker's place.
        normalisation: mean and standard deviation of the images' channels, (C,) each.
    """

    def __init__(
        self, settings: Settings, learner: Learner, teacher: nn.Module | None, *, dtype: torch.dtype,
        sharding: Sharding, normalisation: tuple[Tensor, Tensor],
    ):  # fmt: skip
        self.settings, self.learner = settings, learner
        self.dtype, self.sharding = dtype, sharding
        self.weights = weights_of(settings.distill, has_teacher=teacher is not None)
        self.distiller: Distiller | None = None
        self._seen: Outputs | None = None  # of the student's last step, on the agents' view
        if learner.losses is not None:
            self.distiller = Distiller(
                learner.losses.train(),
                learner.networks[Role.STUDENT],
                teacher,
                view_mode=settings.distill.view_mode,
                dtype=dtype,
                sharding=sharding,
                normalisation=normalisation,
                two_branches=settings.distill.branches is not None,
            )

    def take(
        self, batch: Batch, scalars: Mapping[Role, Mapping[str, float]], progress: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Take one step with each network, or one with the learned agent, if it is its turn.

        Returns losses as `<role>/<loss>` and what is logged of the agent, detached and not waited for, but for the one
        number that the learned agent's gate goes by.

        Args:
            batch: the images.
            scalars: evolved values by role, which win over the settings'.
            progress: share of the training that is done, in [0, 1).
            generator: of what losses draw.
        """
        found: dict[str, Tensor] = {}
        temperature = scalars[Role.STUDENT].get("temperature", self.settings.distill.temperature)
        turn = self._augmentors_turn(batch, temperature)
        if turn is not None:
            return turn
        for role, weights, losses in self._lessons(batch, scalars[Role.STUDENT], progress, generator):
            self._set_optimizer(self.learner.optimizers[role], scalars[role], progress)
            total = self._update(role, weights, losses)
            found |= {f"{role}/{name}": value.detach() for name, value in ({"loss": total} | losses).items()}
        return found | self._noted(batch)

    def _augmentors_turn(self, batch: Batch, temperature: float) -> dict[str, Tensor] | None:
        """Take a step with the learned agent in place of the networks, if it is its turn; None: it is not."""
        agent, distiller = self.learner.learned, self.distiller
        role = decides(self.settings.distill.view_mode)
        if agent is None or distiller is None or batch.chains[role].learned is None or agent.gate.phase == "student":
            return None
        with evaluating(distiller.student), evaluating(distiller.taught_by):
            found = agent.step(
                batch.unlearned(role),
                batch.indices[batch.at],
                count=len(batch),
                seed=self.settings.seed,
                role=role,
                epoch=batch.epoch,
                student=distiller.student_rows,
                teacher=distiller.teacher_rows,
                gather=self.sharding.gather,
                add_up=self.sharding.sum_together,
                temperature=temperature,
            )
        agent.gate.tell(found["student_loss"].item())
        return {f"learned/{name}": value for name, value in found.items()}

    def _lessons(
        self, batch: Batch, scalars: Mapping[str, float], progress: float, generator: torch.Generator
    ) -> Iterator[Lesson]:
        """Yield what each network learns; it is updated before the next is asked for.

        A co-evolving teacher takes its step first, and the student learns from the teacher it then is. Peers are both
        run before either is updated (Zhang et al., arXiv 1706.00384, algorithm 1, updates them in turn; the study's
        code at once).
        """
        losses, teacher = self.learner.losses, self.learner.networks.get(Role.TEACHER)
        peers = losses is not None and losses.online == "peer"
        if teacher is not None and not peers:
            yield Role.TEACHER, FROM_LABELS, self._from_labels(teacher, batch)
        if self.distiller is None or losses is None:
            return
        weights = {name: scalars.get(f"losses.{name}", weight) for name, weight in self.weights.items()}
        temperature = scalars.get("temperature", self.settings.distill.temperature)
        outputs = self.distiller.outputs(batch, temperature=temperature, progress=progress, generator=generator)
        self._seen = outputs[-1]
        of_student = self._of_branches(losses, weights, outputs)
        if peers:
            yield self._of_peer(losses, weights, outputs[0])
        yield Role.STUDENT, weights, of_student

    def _of_branches(self, losses: Losses, weights: Mapping[str, float], outputs: list[Outputs]) -> dict[str, Tensor]:
        """Return the student's losses; those of two branches are added up by the weights of `distill.branches`."""
        branches = self.settings.distill.branches
        if branches is None or len(outputs) == 1:
            return losses(seen_by_student(outputs[0]), weights)
        total: dict[str, Tensor] = {}
        for output, of_labels, of_teacher in zip(
            outputs, (1.0, branches.mixed_labels), (branches.clean, branches.augmented)
        ):
            share = {name: of_teacher if losses.methods[name].distils else of_labels for name in weights}
            wanted = {name: weight * share[name] for name, weight in weights.items()}
            for name, value in losses(seen_by_student(output), wanted).items():
                total[name] = total[name] + share[name] * value if name in total else share[name] * value
        return total

    def _noted(self, batch: Batch) -> dict[str, Tensor]:
        """Return what else is logged of the student's step, and tell the gate of the learned agent how it does.

        An agent that the chain does not hold now is not told: the loss is not of its views.
        """
        seen, agent = self._seen, self.learner.learned
        if seen is None:
            return {}
        self._seen = None
        in_chain = batch.chains[decides(self.settings.distill.view_mode)].learned is not None
        if agent is not None and in_chain and seen.logits_teacher is not None:
            student, teacher = seen.logits_student.detach(), seen.logits_teacher.detach()
            agent.gate.tell(hinton(student, teacher, seen.temperature).item())
        return {"student/picked_ratio": seen.picked_ratio} if seen.picked_ratio is not None else {}

    def _of_peer(self, losses: Losses, weights: Mapping[str, float], outputs: Outputs) -> Lesson:
        """Return what a student's peer learns: as the student does, from labels, and from the other as its peer."""
        both = [name for name, one in losses.methods.items() if one.online == "peer" or not one.distils]
        shared = {name: weights[name] for name in both}
        return Role.TEACHER, shared, losses(seen_by_peer(outputs), shared)

    def _from_labels(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return what a network learns from labels on the teacher role's view; it picks by its own answers."""
        view, targets, count = batch.teacher_view, batch.targets(Role.TEACHER), len(batch)
        settings = batch.chains[Role.TEACHER].pick
        if settings is not None:

            def answers(rows: Tensor) -> Tensor:
                with evaluating(network), torch.no_grad(), autocast(self.dtype, rows.device):
                    return network(rows)

            kept = picked(
                batch, settings, "shared_teacher", teach=answers, learn=answers, sharding=self.sharding, temperature=1.0
            )
            view, targets, count = kept.for_student, kept.labels, len(kept.labels)
        with autocast(self.dtype, batch.indices.device):
            logits = network(view)
        return {"cross_entropy": cross_entropy(self.sharding.gather(logits, count), targets)}

    def _set_optimizer(self, optimizer: torch.optim.Optimizer, scalars: Mapping[str, float], progress: float) -> None:
        settings = self.settings.training
        factor = learning_rate_factor(settings, progress)
        for group in optimizer.param_groups:
            group["lr"] = scalars.get("learning_rate", settings.learning_rate) * factor
            group["weight_decay"] = scalars.get("weight_decay", settings.weight_decay)

    def _update(self, role: Role, weights: Mapping[str, float], losses: dict[str, Tensor]) -> Tensor:
        """Take one step; return the total loss."""
        network, methods = self.learner.networks[role], self.learner.losses
        if not losses:
            raise TrainingError(f"{role}: all losses have weight 0, got {dict(weights)}; expected one above 0")
        total = weighted_sum(weights, losses)
        self.learner.optimizers[role].zero_grad(set_to_none=True)
        peers = methods is not None and methods.online == "peer"
        if self.settings.distill.clip_to_task and methods is not None and (peers or role == Role.STUDENT):
            self._clipped_backward(network, methods, weights, losses)
        else:
            total.backward()
            self.sharding.sum_gradients(network)
        self.learner.optimizers[role].step()
        return total

    def _clipped_backward(
        self, network: nn.Module, methods: Losses, weights: Mapping[str, float], losses: dict[str, Tensor]
    ) -> None:
        task = {name: loss for name, loss in losses.items() if not methods.methods[name].distils}
        rest = {name: loss for name, loss in losses.items() if methods.methods[name].distils}
        clipped_backward(
            [parameter for parameter in network.parameters() if parameter.requires_grad],
            weighted_sum(weights, task),
            weighted_sum(weights, rest) if rest else None,
            self.learner.epoch,
            self.sharding,
        )
