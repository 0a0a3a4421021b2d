"""Networks of which one becomes the student: online methods train several of its architecture at once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from rolekd_ray.config import Settings
from rolekd_ray.roles import Role
from rolekd_ray.training.learner import Learner


@dataclass(frozen=True, eq=False)
class Candidate:
    """One of them: `network` can be run, `state` is what a network of the student's architecture loads."""

    name: str
    network: nn.Module
    state: Mapping[str, Tensor]


def candidates(learner: Learner, settings: Settings, role: Role = Role.STUDENT) -> list[Candidate]:
    """Return a role's network and, of a student, what was trained beside it: branches, a peer of its architecture.

    Which is best is for validation images to say, never for test images.
    """
    student, losses = learner.networks[role], learner.losses
    found = [Candidate(str(role), student, student.state_dict())]
    if losses is None or role != Role.STUDENT:
        return found
    for module in losses.state.values():
        members: Callable[[], list[nn.Module]] = getattr(module, "members", list)
        for number, tail in enumerate(members(), start=2):
            branch = _WithState(student, tail.state_dict())
            found.append(Candidate(f"branch {number}", branch, student.state_dict() | tail.state_dict()))
    peer = learner.networks.get(Role.TEACHER)
    if peer is not None and losses.online == "peer" and settings.teacher.model == settings.student.model:
        found.append(Candidate("peer", peer, peer.state_dict()))
    return found


class _WithState(nn.Module):
    """A network run with some other weights and buffers; a copy would hold the workers' process group."""

    def __init__(self, network: nn.Module, state: dict[str, Tensor]):
        super().__init__()
        self.network, self.replaced = network, state

    def forward(self, images: Tensor) -> Any:
        return functional_call(self.network, self.replaced, (images,))
