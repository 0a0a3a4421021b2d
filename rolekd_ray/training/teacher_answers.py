"""A frozen teacher's answers to plain images and to the views of chains of agents."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rolekd_ray.augment.learned.agent import LearnedAgent
from rolekd_ray.config import Settings
from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.policy.space import SearchSpace
from rolekd_ray.roles import Role
from rolekd_ray.training.batch import Batch, Source
from rolekd_ray.training.chains import Chain
from rolekd_ray.training.data import TrainingData
from rolekd_ray.training.picks import picked
from rolekd_ray.training.sharding import ALONE
from rolekd_ray.training.view_diagnosis import Answers
from rolekd_ray.training.views import Views

_PLAIN = Chain()


@dataclass(frozen=True, eq=False)
class TeacherAnswers:
    """Makes the student role's views as a training does, shared by both networks, and asks a teacher what they are.

    Attributes:
        source: of the images.
        teacher: in evaluation mode, on the images' device; asked in its own number format.
        temperature: of picking by divergence.
    """

    source: Source
    teacher: nn.Module
    temperature: float = 4.0

    def plain(self, indices: Tensor, epoch: int) -> Tensor:
        """Return logits (B, K) of x, the base augmentation alone; see `PlainAnswers`."""
        return _ask(self.teacher, self._batch(_PLAIN, indices, epoch).student_view)

    def of_chain(self, chain: Chain, student: nn.Module | None = None, learned: LearnedAgent | None = None) -> Answers:
        """Return what answers to a chain's views.

        Args:
            chain: at one time of a schedule.
            student: in evaluation mode; for picking that asks it.
            learned: a member's; for a chain that holds one.
        """
        assert (chain.learned is None) == (learned is None), "a learned agent's state is a member's"

        def answers(indices: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
            batch = self._batch(chain, indices, epoch, learned)
            if chain.pick is None:
                return _ask(self.teacher, batch.student_view), batch.at
            found = picked(
                batch,
                chain.pick,
                "shared_student",
                teach=lambda view: _ask(self.teacher, view),
                learn=lambda view: _ask(student, view),
                sharding=ALONE,
                temperature=self.temperature,
            )
            return found.logits_teacher, found.places

        return answers

    def _batch(self, chain: Chain, indices: Tensor, epoch: int, learned: LearnedAgent | None = None) -> Batch:
        at = torch.arange(len(indices), device=indices.device)
        return Batch(self.source, indices, at, epoch, dict.fromkeys(Role, chain), learned)


def new_teacher_answers(
    settings: Settings, data: TrainingData, space: SearchSpace, teacher: nn.Module, device: torch.device
) -> TeacherAnswers:
    """Return a finished teacher's answers to a run's data, in float32; the teacher itself is left as it is."""
    mean, std = (value.to(device) for value in data.statistics)
    views = Views(settings.base_augmentation, space, mean, std, seed=settings.seed)
    image_set, pool = data.image_set, data.train.sort().values.to(device)
    source = Source(image_set.images.to(device), data.labels.to(device), pool, image_set.num_classes, views)
    teacher = fold_batchnorm(teacher).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TeacherAnswers(source, teacher, settings.distill.temperature)


@torch.no_grad()
def _ask(network: nn.Module | None, view: Tensor) -> Tensor:
    assert network is not None, "picking asks for a student"
    return network(view).float()
