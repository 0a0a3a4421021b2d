"""How fast a distillation step is, against the same mathematics as one would write it first.

`python tests/benchmarks/test_step_speed.py`. resnet56 teaches resnet20, 64 photographs a step, two views. The base is
a plain loop in float32, NCHW, with the teacher's BatchNorms where they are; views are the package's in every arm.
"""

import pytest
import torch
from step_arms import (
    BATCH,
    CPU,
    STUDENT,
    TEACHER,
    head,
    network,
    policies_of_round,
    step_data,
    step_settings,
    table,
    timed,
    training,
)
from torch.nn import functional as F

from rolekd_ray.models.folding import fold_batchnorm
from rolekd_ray.roles import Role
from rolekd_ray.training.precision import has_fast_bfloat16

ROUNDS, ROUNDS_EMULATED, WANTED_RATIO = 9, 2, 2.0
BASE, OURS, BFLOAT16 = "plain: float32, NCHW, not folded", "ours: precision auto", "ours: precision bfloat16"

pytestmark = pytest.mark.benchmark


class PlainStep:
    """Distillation as in a tutorial, in one memory format, with or without a folded teacher."""

    def __init__(self, data, *, channels_last: bool = False, folded: bool = False):
        settings = step_settings("float32")
        self.trainer, learner = training(settings, data)  # for its views and the student's initial weights
        self.settings, self.student, self.teacher = settings, learner.networks[Role.STUDENT], network(TEACHER, 0).eval()
        if folded:
            self.teacher = fold_batchnorm(self.teacher)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        for net in (self.student, self.teacher):
            net.to(memory_format=self.format)
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

    def __call__(self, number: int) -> float:
        trainer, policies = self.trainer, policies_of_round(self.settings, number)
        views = {
            role: trainer.views.view(
                trainer.views.agent([(1.0, policies[role])]), trainer.images[trainer.indices], trainer.indices,
                role=role, epoch=number,
            ).contiguous(memory_format=self.format)
            for role in Role
        }  # fmt: skip
        with torch.no_grad():
            targets = F.log_softmax(self.teacher(views[Role.TEACHER]) / 4, dim=1)
        logits = self.student.train()(views[Role.STUDENT])
        divergence = F.kl_div(F.log_softmax(logits / 4, dim=1), targets, reduction="batchmean", log_target=True)
        loss = 0.1 * F.cross_entropy(logits, trainer.labels[trainer.indices]) + 0.9 * 16 * divergence
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class OurStep:
    """One epoch of one batch by the package's epoch loop."""

    def __init__(self, data, precision: str):
        self.settings = step_settings(precision)
        self.trainer, self.learner = training(self.settings, data)

    def __call__(self, number: int) -> float:
        self.learner.epoch = number
        policies = policies_of_round(self.settings, number)
        losses = self.trainer.train(
            self.learner, lambda role, epoch: [(1.0, policies[role])], end_epoch=number + 1, total_epochs=10**9,
            stream="benchmark",
        )  # fmt: skip
        return losses["student/loss"]


def report(rounds: int = ROUNDS) -> dict[str, float]:
    """Print both tables; return how many times as fast as the plain loop each arm is."""
    data, origin = step_data(1)
    first = [PlainStep(data)(0), OurStep(data, "float32")(0), OurStep(data, "bfloat16")(0)]
    assert first[1] == pytest.approx(first[0], rel=1e-4), f"not the same mathematics: {first}"
    assert first[2] == pytest.approx(first[0], rel=5e-2), f"bfloat16 is not close: {first}"
    arms = {
        BASE: PlainStep(data),
        "plain, channels_last": PlainStep(data, channels_last=True),
        "plain, folded teacher": PlainStep(data, folded=True),
        "plain, channels_last, folded teacher": PlainStep(data, channels_last=True, folded=True),
        OURS: OurStep(data, "auto"),
        f"{BASE} again": PlainStep(data),
    }
    head(f"step: {TEACHER} teaches {STUDENT}, {BATCH} {origin}, two views", rounds)
    medians = table(timed(arms, rounds), BASE)
    if not has_fast_bfloat16(CPU):
        rounds = min(rounds, ROUNDS_EMULATED)
    head("bfloat16 where asked for", rounds)
    slow = table(timed({BASE: arms[BASE], BFLOAT16: OurStep(data, "bfloat16")}, rounds), BASE)
    print(f"auto chose {arms[OURS].trainer.dtype}")
    assert arms[OURS].trainer.dtype == (torch.bfloat16 if has_fast_bfloat16(CPU) else torch.float32)
    return medians | {BFLOAT16: slow[BFLOAT16]}


def test_a_step_is_twice_as_fast_as_the_plain_loop_where_bfloat16_is_fast(capsys):
    with capsys.disabled():
        ratios = report()
    if not has_fast_bfloat16(CPU):
        assert ratios[OURS] > ratios[BFLOAT16], "auto chose the slower format"
        pytest.skip(
            f"this CPU is slow at bfloat16: the bound does not apply; float32 is {ratios[OURS]:.2f} x the plain loop"
        )
    assert ratios[OURS] >= WANTED_RATIO


if __name__ == "__main__":
    report()
