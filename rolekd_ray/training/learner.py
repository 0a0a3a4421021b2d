"""A learner: the networks that are trained together, their optimisers, and how far they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import nn

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.augment.randomness import stream_key
from rolekd_ray.config import Settings, TrainingSettings
from rolekd_ray.distill.losses import Losses
from rolekd_ray.errors import CheckpointError
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role


@dataclass
class Learner:
    """What a training changes, and all that a member's state holds of it.

    There are no generators to save: orders, views and dropout are pure functions of seeds and counters. The learning
    rate is a pure function of the epoch. bfloat16 needs no gradient scaler.
    """

    networks: dict[Role, nn.Module]
    optimizers: dict[Role, torch.optim.Optimizer]
    epoch: int = 0
    losses: Losses | None = None
    """The student's, with the state that some of them keep; None where only a teacher is trained."""
    learned: LearnedAgent | None = None
    """The learned agent that some chain of the run may hold; None where none does, or no student is trained."""

    def add_losses(self, losses: Losses) -> None:
        """Take over a student's losses; what they learn is optimised with the student."""
        assert self.losses is None, "a learner is equipped once"
        self.losses = losses
        parameters = list(losses.parameters())
        if parameters:
            self.optimizers[Role.STUDENT].add_param_group({"params": parameters})

    def tree(self) -> dict[str, Any]:
        """Return everything as a tree for a checkpoint."""
        tree = {
            "epoch": self.epoch,
            "networks": {str(role): network.state_dict() for role, network in self.networks.items()},
            "optimizers": {str(role): optimizer.state_dict() for role, optimizer in self.optimizers.items()},
        }
        state = self.losses.state_dict() if self.losses is not None else {}
        tree |= {"losses": dict(state)} if state else {}
        return tree | {"learned": self.learned.tree()} if self.learned is not None else tree

    def load(self, tree: Mapping[str, Any], *, where: str) -> None:
        """Take over a saved tree; every value this learner held is replaced.

        Raises:
            CheckpointError: it was saved for other networks, or is no learner's tree.
        """
        missing = {"epoch", "networks", "optimizers"} - tree.keys()
        if missing:
            raise CheckpointError(f"{where}: not a training's state, lacks {', '.join(sorted(missing))}")
        if tree["networks"].keys() != set(map(str, self.networks)):
            held, wanted = sorted(tree["networks"]), sorted(map(str, self.networks))
            raise CheckpointError(f"{where}: holds networks of {held}; expected {wanted}")
        if self.losses is not None:
            load_weights(self.losses, tree.get("losses", {}), where=f"{where}: losses")
        if self.learned is not None:
            if "learned" not in tree:
                raise CheckpointError(f"{where}: holds no learned agent; expected one, as the chains of agents say")
            self.learned.load_tree(tree["learned"])
        for role, network in self.networks.items():
            load_weights(network, tree["networks"][role], where=f"{where}: {role}")
            self.optimizers[role].load_state_dict(tree["optimizers"][role])
        self.epoch = tree["epoch"]


def new_learner(
    settings: Settings, roles: tuple[Role, ...], *, num_classes: int, channels: int, device: torch.device, key: object
) -> Learner:
    """Return fresh networks and optimisers of these roles; initial weights follow from the run's seed and `key`."""
    networks = {
        role: build_network(
            settings.network(role).model,
            num_classes=num_classes,
            channels=channels,
            seed=stream_key(settings.seed, "weights", role, key) % 2**63,
        ).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for role in roles
    }
    return Learner(networks, {role: new_optimizer(net, settings.training) for role, net in networks.items()})


def new_optimizer(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Return the optimiser of what is not frozen.

    Weight decay applies to every parameter, as in the KD literature's recipes.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def learning_rate_factor(settings: TrainingSettings, progress: float) -> float:
    """Return what the base learning rate is multiplied with.

    Args:
        settings: `learning_rate_schedule` is `cosine` (to 0), `step` (times 0.1 at each milestone) or `constant`.
        progress: share of the training that is done, in [0, 1].
    """
    schedule = settings.learning_rate_schedule
    if schedule == "cosine":
        return (1 + cos(pi * progress)) / 2
    milestones = settings.learning_rate_milestones
    return 0.1 ** sum(progress >= milestone for milestone in milestones) if schedule == "step" else 1.0


def load_weights(network: nn.Module, weights: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy saved weights and buffers into a network.

    Raises:
        CheckpointError: they belong to another architecture; names what differs first.
    """
    own = network.state_dict()
    differing = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    if differing:
        name = differing[0]
        shapes = [tuple(side[name].shape) if name in side else "nothing" for side in (weights, own)]
        raise CheckpointError(
            f"{where}: of another architecture: {len(differing)} tensors differ, first {name!r}: "
            f"got {shapes[0]}; expected {shapes[1]}"
        )
    network.load_state_dict(weights)
