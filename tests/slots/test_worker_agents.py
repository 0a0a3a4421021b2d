"""What a member's learned agent lives through: its own phases, exploits, chains without it, stops."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rolekd_ray.augment.learned.gate import Gate
from rolekd_ray.config import RoleAgents, Settings, load_settings
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training.checkpoint import load_checkpoint
from rolekd_ray.training.epochs import Trainer
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.losses import without_agents
from rolekd_ray.training.steps import Steps

CHAINS = ("policy", "learned", "policy+learned+cutmix+pick")
SPACE = (
    "space={ops: {rotate: {range: [0, 27], signed: true}}, "
    "scalars: {learned.lower: {initial: 50, range: [1, 60]}, learned.upper: {initial: 100, range: [1, 200]}, "
    "learned.max_steps: {initial: 2, range: [1, 9]}, learned.learning_rate: {initial: 0.02, range: [0.001, 0.1]}}, "
    f"choices: {{agents: {{initial: policy, values: [{', '.join(CHAINS)}]}}}}}}"
)
TINY = (
    "data.train=40", "data.validation=20", "final.train=40", "final.epochs=3", "teacher.model=resnet8",
    "training.batch_size=14", "training.precision=float32", "search.perturbation_interval_epochs=1", SPACE,
)  # fmt: skip
SCALARS = {"learned.lower": 50.0, "learned.upper": 100.0, "learned.max_steps": 2.0, "learned.learning_rate": 0.02}
"""The student is done at once, and the augmentor after two steps: of three batches one or two are the student's."""


def settings_of(*overrides: str) -> Settings:
    return load_settings("quickstart", [*TINY, *overrides])


def policy(chain: str, **scalars: float) -> Policy:
    return Policy((), {**SCALARS, **{f"learned.{k}": v for k, v in scalars.items()}}, {"agents": chain})


def job(member: int, generation: int, chain: str, donor: int | None = None, **scalars: float) -> Job:
    donor = None if generation == 0 else member if donor is None else donor
    return Job(member, generation, donor, generation, generation + 1, 4, {Role.STUDENT: policy(chain, **scalars)})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "teacher"
    train_final(FinalTraining(settings_of(), Role.TEACHER, folder))
    return folder


def worker(states: Path, teacher: Path | None, *overrides: str, roles=(Role.STUDENT,)) -> TrainingWorker:
    return TrainingWorker(Task(settings_of(*overrides), states, roles, teacher=teacher))


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def state_of(states: Path, one: Job) -> dict[str, Any]:
    return load_checkpoint(states / one.state)[0]


def test_exploit_copies_student_agent_both_optimisers_and_the_phase(tmp_path, teacher):
    """Invariant 21; the recipient's agent had other weights, and its chain none."""
    one = worker(tmp_path, teacher)
    donor, recipient, copying = job(0, 0, "learned"), job(1, 0, "policy"), job(1, 1, "learned", donor=0)
    for each in (donor, recipient):
        one.train(each)
    theirs, its = state_of(tmp_path, donor), state_of(tmp_path, recipient)
    assert not same(theirs["learned"]["augmentor"], its["learned"]["augmentor"])
    assert theirs["learned"]["gate"]["phases"]["augmentor"] == 1 and theirs["learned"]["steps"] == 2
    assert its["learned"]["steps"] == 0 and its["learned"]["gate"]["steps"] == {"student": 0, "augmentor": 0}
    assert same(one._learner(copying).tree(), theirs)  # recipient's was held: the donor's comes from its file
    assert {"augmentor", "optimizer", "gate", "steps"} <= theirs["learned"].keys() and theirs["optimizers"]["student"]
    one.train(copying)
    again = worker(tmp_path / "again", teacher)
    for each in (donor, copying):  # and here the donor's is held
        again.train(each)
    assert same(state_of(tmp_path, copying), state_of(tmp_path / "again", copying))


@pytest.mark.parametrize("phase", ["student", "augmentor"])
def test_a_chain_without_it_carries_the_agent_along_unchanged(tmp_path, teacher, phase):
    one = worker(tmp_path, teacher)
    lower = 50.0 if phase == "augmentor" else 0.0
    first, without = job(0, 0, "learned", lower=lower, max_steps=9), job(0, 1, "policy", lower=30, upper=40)
    one.train(first)
    before = state_of(tmp_path, first)["learned"]
    assert before["gate"]["phase"] == phase
    metrics = one.train(without)
    assert same(state_of(tmp_path, without)["learned"], before)
    assert {"student/loss", "score", "student_view/divergence"} <= metrics.keys()


def test_what_evolves_of_it_is_in_force(tmp_path, teacher):
    one = worker(tmp_path, teacher)
    first = job(0, 0, "learned", lower=2, upper=3, max_steps=7, learning_rate=0.003)
    one.train(first)
    learned = state_of(tmp_path, first)["learned"]
    assert (learned["gate"]["lower"], learned["gate"]["upper"], learned["gate"]["max_steps"]) == (2, 3, 7)
    assert learned["optimizer"]["param_groups"][0]["lr"] == 0.003


def test_an_interval_of_the_augmentor_alone_has_a_score_like_any(tmp_path, teacher):
    """No student's loss is known of it, and nobody needs one."""
    one = worker(tmp_path, teacher)
    one.train(job(0, 0, "learned", max_steps=9))
    before = state_of(tmp_path, job(0, 0, "learned"))["networks"]
    metrics = one.train(job(0, 1, "learned", max_steps=9))
    assert "student/loss" not in metrics and "learned/objective" in metrics and 0 <= metrics["score"] <= 1
    assert same(state_of(tmp_path, job(0, 1, "learned"))["networks"], before)


# ---- stops


def stops_before(epoch: int) -> pytest.MonkeyPatch:
    """Raise in the place of an epoch; return what undoes it."""
    real = Trainer._epoch

    def stop(self, learner, *rest):
        if learner.epoch == epoch:
            raise KeyboardInterrupt
        return real(self, learner, *rest)

    patch = pytest.MonkeyPatch()
    patch.setattr(Trainer, "_epoch", stop)
    return patch


@pytest.mark.parametrize("chain", CHAINS[1:])
def test_a_final_training_that_was_cut_short_ends_with_the_same_bits(tmp_path, teacher, chain):
    settings = settings_of()
    segments = (Segment(1, policy("policy")), Segment(2, policy(chain)))
    schedule = Schedule(settings.search_space(), {Role.STUDENT: segments})
    whole, cut = (
        FinalTraining(settings, Role.STUDENT, tmp_path / name, schedule, teacher) for name in ("whole", "cut")
    )
    train_final(whole)
    patch = stops_before(2)
    with pytest.raises(KeyboardInterrupt):
        train_final(cut)
    patch.undo()
    partial, _ = load_checkpoint(next((tmp_path / "cut.partial").iterdir()))
    assert partial["epoch"] == 2 and partial["learned"]["steps"] > 0
    train_final(cut)
    expected = load_checkpoint(tmp_path / "whole")[0]
    assert same(load_checkpoint(tmp_path / "cut")[0], expected)
    assert expected["learned"]["steps"] > partial["learned"]["steps"]


def test_an_interval_that_was_cut_short_is_trained_again_to_the_same_bits(tmp_path, teacher):
    jobs = [job(0, 0, "learned"), job(0, 1, CHAINS[2]), job(0, 2, "learned")]
    for each in jobs:
        worker(tmp_path / "whole", teacher).train(each)  # each in a worker of its own: nothing can leak
    one = worker(tmp_path / "cut", teacher)
    one.train(jobs[0])
    patch = stops_before(1)
    with pytest.raises(KeyboardInterrupt):
        one.train(jobs[1])
    patch.undo()
    for each in jobs[1:]:
        one.train(each)
    assert all(same(state_of(tmp_path / "cut", each), state_of(tmp_path / "whole", each)) for each in jobs)


def test_a_control_without_agents_has_no_learned_one(tmp_path, teacher):
    """The space's chains are those of the search: fitting a VAE for nobody would cost seconds."""
    train_final(FinalTraining(without_agents(settings_of()), Role.STUDENT, tmp_path / "plain", teacher=teacher))
    assert load_checkpoint(tmp_path / "plain")[0].keys() == {"networks"}


# ---- phases


def networks_of(steps: Steps) -> dict[str, Any]:
    """All of the networks that a step may touch: weights, buffers, gradients, optimisers, mode."""
    learner, distiller = steps.learner, steps.distiller
    assert distiller is not None
    networks = {f"own {role}": network for role, network in learner.networks.items()} | {"taught by": distiller.teacher}
    grads = {
        f"{name} {part}": torch.zeros(0) if value.grad is None else value.grad
        for name, network in networks.items()
        for part, value in network.named_parameters()
    }
    return {
        "states": {name: network.state_dict() for name, network in networks.items()},
        "grads": grads,
        "optimizers": {str(role): optimizer.state_dict() for role, optimizer in learner.optimizers.items()},
        "training": {name: network.training for name, network in networks.items()},
    }


@pytest.mark.parametrize("protocol", ["frozen teacher", "co-evolving"])
@pytest.mark.parametrize("chain", CHAINS[1:])
def test_each_phase_changes_its_own_side_alone(tmp_path, teacher, monkeypatch, protocol, chain):
    """Invariant 17: student frozen in the augmentor's turn, the augmentor in the student's, a frozen teacher always."""
    turns: list[str] = []
    real = Steps.take

    def watched(self, batch, *rest):
        agent = self.learner.learned
        before, own = copy.deepcopy(networks_of(self)), copy.deepcopy(agent.tree())
        found = real(self, batch, *rest)
        after, now = networks_of(self), agent.tree()
        changed = {name for name, state in after["states"].items() if not same(state, before["states"][name])}
        if "learned/objective" in found:
            assert same(after, before) and "student/loss" not in found
            assert not same(now["augmentor"], own["augmentor"])
            assert all(parameter.grad is None for parameter in agent.augmentor.parameters())
        else:
            moved = ("gate",)
            assert same({k: v for k, v in now.items() if k not in moved}, {k: own[k] for k in own if k not in moved})
            assert "own student" in changed
            assert ("taught by" in changed) == (protocol == "co-evolving")
        if protocol == "frozen teacher":
            assert all(parameter.grad is None for parameter in self.distiller.teacher.parameters())
        turns.append("augmentor" if "learned/objective" in found else "student")
        return found

    monkeypatch.setattr(Steps, "take", watched)
    if protocol == "frozen teacher":
        one, policies = worker(tmp_path, teacher), {Role.STUDENT: policy(chain)}
    else:
        one, policies = worker(tmp_path, None, roles=tuple(Role)), {role: policy(chain) for role in Role}
        policies[Role.TEACHER] = Policy()
    one.train(Job(0, 0, None, 0, 2, 4, policies))
    # The student is done at once, but then as many steps long as the augmentor was
    assert turns == ["student", "augmentor", "augmentor", "student", "student", "augmentor"]


# ---- thresholds


THRESHOLDS = st.floats(0, 1e6, allow_subnormal=False)


@given(lower=THRESHOLDS, upper=THRESHOLDS, which=st.sampled_from(["both", "lower", "upper"]))
def test_thresholds_that_evolved_stay_in_order(lower, upper, which):
    agents = RoleAgents(learned={"lower": 0.5, "upper": 1.5})  # type: ignore[arg-type]
    given_ = {"learned.lower": lower, "learned.upper": upper}
    scalars = given_ if which == "both" else {f"learned.{which}": given_[f"learned.{which}"]}
    found = agents.evolved(scalars, {}).learned
    assert 0 <= found.lower < found.upper
    wanted = sorted({"learned.lower": 0.5, "learned.upper": 1.5, **scalars}.values())
    assert found.lower == wanted[0] and found.upper >= wanted[1]
    if wanted[1] > 1.1 * wanted[0] + 1e-5:
        assert found.upper == wanted[1], "a pair that is apart is kept"
    gate = Gate(0.05, 1.5, 60)
    gate.move(found.lower, found.upper)
    assert (gate.lower, gate.upper) == (found.lower, found.upper), "nothing is left to repair"


def test_other_settings_that_evolve_leave_thresholds_alone():
    agents = RoleAgents(learned={"lower": 1.0, "upper": 1.05})  # type: ignore[arg-type]
    assert agents.evolved({"cutmix.alpha": 2.0}, {"agents": "learned+cutmix"}).learned == agents.learned
