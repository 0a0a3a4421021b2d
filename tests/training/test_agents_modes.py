"""Every chain of agents, of either role, in every view mode and both protocols; and over longer trainings."""

from dataclasses import replace

import pytest
import torch
from training_helpers import tiny_settings

from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.search.agents_check import agent_problems
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.distiller import Distiller
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.learner import new_learner
from rolekd_ray.training.steps import Steps

CPU = torch.device("cpu")
CHAINS = ("none", "policy", "randaugment", "trivial_augment_wide", "autoaugment", "augmix", "cutout", "mixup", "cutmix",
          "pick", "learned", "policy+cutmix+pick", "randaugment+learned+mixup+pick")  # fmt: skip
KINDS = ("policy", "augmix", "mixup", "learned", "policy+cutmix+pick", "randaugment+learned+mixup+pick")
"""One of each kind: all of them in all modes take 20 seconds."""
MODES = ("shared_student", "shared_teacher", "independent", "teacher_clean")


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return open_training_data(tiny_settings().data, train=6)


def views_seen(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What both networks are fed with in the student's steps, from here on."""
    seen = []
    real = Distiller._learn

    def watched(self, branches):
        seen.extend((branch.for_student, branch.for_teacher) for branch in branches)
        return real(self, branches)

    monkeypatch.setattr(Distiller, "_learn", watched)
    return seen


@pytest.mark.parametrize("chains", [pytest.param(KINDS, id="kinds"),
                                    pytest.param(CHAINS, id="all", marks=pytest.mark.slow)])  # fmt: skip
@pytest.mark.parametrize("protocol", ["coevolve", "sequential"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("role", Role)
def test_no_chain_fails_in_any_mode_and_both_networks_see_as_much(digits, monkeypatch, role, mode, protocol, chains):
    """What the check before a run accepts, trains; `learned` in the role that the student does not see is refused."""
    seen = views_seen(monkeypatch)
    trained = 0
    for number, chain in enumerate(chains):
        branches = ("distill.branches={}",) * (number % 2)
        settings = tiny_settings(
            "training.precision=float32", "teacher.model=resnet8", "training.batch_size=6",
            f"search.protocol={protocol}", f"distill.view_mode={mode}",
            f"agents.{role}={{chain: {chain}, learned: {{lower: 0}}}}", *branches,
        )  # fmt: skip
        decides = Role.TEACHER if mode == "shared_teacher" else Role.STUDENT
        if problems := agent_problems(settings):
            assert "learned" in chain and role != decides and len(problems) == 1, problems
            continue
        roles = tuple(Role) if protocol == "coevolve" else (Role.STUDENT,)
        learner = new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=0)
        trainer = new_trainer(settings, digits, settings.search_space(), CPU, None)
        teacher = build_network("resnet8", num_classes=10, channels=1, seed=9)
        trainer = trainer if protocol == "coevolve" else replace(trainer, frozen_teacher=teacher)
        seen.clear()
        metrics = trainer.train(learner, no_policy, end_epoch=1, total_epochs=1, stream="a")
        metrics |= trainer.view_statistics(learner, no_policy, 0)
        assert len(seen) == 1 + len(branches)
        shapes = {(one.shape, other.shape) for one, other in seen}
        assert all(one == other and one[1:] == (1, 8, 8) for one, other in shapes), (chain, shapes)
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values()), (chain, metrics)
        assert all((one is other) == mode.startswith("shared") for one, other in seen), chain
        trained += 1
    assert trained >= len(chains) - 2


def no_policy(role, epoch):
    return [(1.0, Policy())]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_teacher_alone_learns_by_every_chain_it_may_have(digits, chain):
    """`learned` is of no use to it, for there is no student; it comes with a chain that a student sees, too."""
    mode = "shared_teacher" if "learned" in chain else "independent"
    settings = tiny_settings("training.precision=float32", "teacher.model=resnet8", "training.batch_size=6",
                             f"agents.teacher.chain={chain}", f"distill.view_mode={mode}")  # fmt: skip
    learner = new_learner(settings, (Role.TEACHER,), num_classes=10, channels=1, device=CPU, key=0)
    trainer = new_trainer(settings, digits, settings.search_space(), CPU, None)
    before = learner.networks[Role.TEACHER].state_dict()["conv1.weight"].clone()
    metrics = trainer.train(learner, no_policy, end_epoch=1, total_epochs=1, stream="a")
    metrics |= trainer.view_statistics(learner, no_policy, 0)
    assert metrics["teacher/loss"] > 0 and "teacher_view/teacher_kept" in metrics
    assert not torch.equal(before, learner.networks[Role.TEACHER].state_dict()["conv1.weight"])


def test_a_prolonged_training_scales_milestones_and_schedule(tmp_path, monkeypatch):
    """Invariant 10: what took 3 epochs takes 6: policies of two epochs each, rates cut at twice the epoch."""
    chains, rates = [], []
    real, step = Trainer._epoch, Steps._set_optimizer

    def epoch(self, learner, *rest):
        chains.append([])
        rates.append([])
        return real(self, learner, *rest)

    def take(self, batch, *rest):
        chains[-1].append(type(batch.chains[Role.STUDENT].mixing).__name__)
        return real_take(self, batch, *rest)

    def rate(self, optimizer, *rest):
        step(self, optimizer, *rest)
        rates[-1].append(optimizer.param_groups[0]["lr"])

    real_take = Steps.take
    monkeypatch.setattr(Trainer, "_epoch", epoch)
    monkeypatch.setattr(Steps, "take", take)
    monkeypatch.setattr(Steps, "_set_optimizer", rate)
    choices = "choices: {agents: {initial: none, values: [none, mixup, cutmix]}}"
    settings = tiny_settings(
        "final.epochs=3", "final.epochs_factor=2", "training.learning_rate_schedule=step", "training.learning_rate=0.1",
        "training.learning_rate_milestones=[0.34, 0.67]", f"space={{ops: {{rotate: {{range: [0, 9]}}}}, {choices}}}",
        "agents.student.mixup.alpha=2",
    )  # fmt: skip
    segments = tuple(Segment(1, Policy(choices={"agents": chain})) for chain in ("none", "mixup", "cutmix"))
    schedule = Schedule(settings.search_space(), {Role.STUDENT: segments})
    assert settings.final_epochs == 6
    train_final(FinalTraining(settings, Role.STUDENT, tmp_path / "net", schedule))
    assert [set(of) for of in chains] == [{"NoneType"}] * 2 + [{"Mixup"}] * 2 + [{"Cutmix"}] * 2
    ends = [of[-1] for of in rates]
    assert ends == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
