"""Online methods: ONE's branches and DML's peer, in one step, in whole trainings, killed and gone on with."""

import copy
import math
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training_helpers import die_at, in_a_fork, same_tree, some_policy, tiny_settings

from rolekd_ray.config import RoleAgents, Settings
from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.models.zoo import build_network
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.search.pipeline import start_run
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training import data as data_module
from rolekd_ray.training import final
from rolekd_ray.training.batch import Batch
from rolekd_ray.training.candidates import candidates
from rolekd_ray.training.checkpoint import load_checkpoint
from rolekd_ray.training.data import TrainingData, open_training_data
from rolekd_ray.training.distiller import Distiller
from rolekd_ray.training.epochs import Trainer, new_trainer
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.learner import Learner, new_learner
from rolekd_ray.training.networks import load_network
from rolekd_ray.training.steps import Steps

CPU = torch.device("cpu")
ONE = "distill.losses={cross_entropy: 1, one: 1}"
DML = "distill.losses={cross_entropy: 1, mutual: 1}"
HINT = "distill.losses={cross_entropy: 1, hint: 1}"
FLOAT = "training.precision=float32"


@pytest.fixture(scope="module")
def digits() -> TrainingData:
    return open_training_data(tiny_settings().data, train=20)


def learner_of(settings: Settings, roles: tuple[Role, ...]) -> Learner:
    return new_learner(settings, roles, num_classes=10, channels=1, device=CPU, key=0)


def nothing(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    return [(1.0, Policy())]


def views(role: Role, epoch: int) -> list[tuple[float, Policy]]:
    return [(1.0, Policy(some_policy(tiny_settings(), role, epoch).settings))]


# ---- one step by hand, in float64


def logs(row: list[float], temperature: float = 1.0) -> list[float]:
    row = [value / temperature for value in row]
    top = max(row)
    total = top + math.log(math.fsum(math.exp(value - top) for value in row))
    return [value - total for value in row]


def label_loss(rows: Tensor, labels: Tensor) -> float:
    return -math.fsum(logs(row)[label] for row, label in zip(rows.tolist(), labels.tolist())) / len(rows)


def divergence(own: Tensor, wanted: Tensor, temperature: float) -> float:
    """T² KL(wanted ‖ own), a mean over images."""
    total = 0.0
    for a, b in zip(own.tolist(), wanted.tolist(), strict=True):
        q, p = logs(a, temperature), logs(b, temperature)
        total += math.fsum(math.exp(x) * (x - y) for x, y in zip(p, q, strict=True))
    return temperature**2 * total / len(own)


def one_by_hand(
    answers: list[Tensor], features: Tensor, gate: nn.Sequential, labels: Tensor, epoch: int, ramp: int,
    temperature: float, target: Tensor | None = None,
) -> float:  # fmt: skip
    linear, norm, _ = copy.deepcopy(gate).requires_grad_(False)
    pooled = [[math.fsum(m) / len(m) for m in image] for image in features.detach().flatten(2).tolist()]
    scores = [
        [math.fsum(w * x for w, x in zip(row, image)) + bias for row, bias in zip(linear.weight.tolist(), linear.bias)]
        for image in pooled
    ]
    count = len(scores)
    for branch in range(len(answers)):
        column = [row[branch] for row in scores]
        mean = math.fsum(column) / count
        variance = math.fsum((v - mean) ** 2 for v in column) / count
        for row in scores:
            normed = (row[branch] - mean) / math.sqrt(variance + norm.eps)
            row[branch] = max(0.0, float(normed * norm.weight[branch] + norm.bias[branch]))
    shares = [[math.exp(v) for v in logs([float(x) for x in row])] for row in scores]
    ensemble = torch.stack([sum(shares[n][b] * answers[b][n] for b in range(len(answers))) for n in range(count)])
    total = math.fsum(label_loss(answer, labels) for answer in answers[1:]) + label_loss(ensemble, labels)
    factor = 1.0 if epoch >= ramp else math.exp(-5 * (1 - epoch / ramp) ** 2)
    wanted = ensemble if target is None else target
    return total + factor * math.fsum(divergence(answer, wanted, temperature) for answer in answers)


def one(branches: int = 3, ramp: float = 0.5) -> tuple[nn.Module, Losses]:
    student = build_network("resnet8", num_classes=5, channels=1, seed=0).double()
    stage = student.layers.stages[-2]
    built = {"shapes_student": {stage: (32, 4, 4)}, "student": student}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        losses = Losses(
            ["one"], options={"one": {"branches": branches, "ramp": ramp}},
            layers={"one": ([stage], [stage])}, built_with=built,
        )  # fmt: skip
    return student, losses.double()


def outputs_of_one(losses: Losses, one_view: bool, epoch: int = 3) -> Outputs:
    stage = losses.layers["one"][0][0]
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    logits, features, logits_self, features_self = draw(6, 5), draw(6, 32, 4, 4), draw(6, 5), draw(6, 32, 4, 4)
    return Outputs(
        logits.requires_grad_(), None, torch.arange(6) % 5, temperature=3.0, progress=epoch / 20,
        features_student={stage: features.requires_grad_()}, logits_self=logits_self,
        features_self={stage: features_self}, one_view=one_view,
    )  # fmt: skip


@pytest.mark.parametrize("epoch", [0, 3, 10])
def test_one_against_a_loop(epoch):
    _, losses = one()
    of = outputs_of_one(losses, one_view=True, epoch=epoch)
    (features,) = of.features_student.values()
    method = losses.state["one"]
    answers = [of.logits_student, *(branch(features) for branch in method.branches)]
    expected = one_by_hand(answers, features, method.gate, of.labels, epoch, 10, 3.0)
    assert losses(of, {"one": 1.0})["one"].item() == pytest.approx(expected, rel=1e-10)


def test_ones_gradient_is_its_losses_slope_with_the_target_held_still():
    _, losses = one()
    of = outputs_of_one(losses, one_view=True)
    (features,), method = of.features_student.values(), losses.state["one"]
    loss = losses(of, {"one": 1.0})["one"]
    of_logits, of_bias = torch.autograd.grad(loss, [of.logits_student, method.gate[1].bias])
    with torch.no_grad():  # what teaches is held still, so it is put in from outside
        target = method._ensemble([of.logits_student, *(branch(features) for branch in method.branches)], features)

    def slope(place: Tensor, number: tuple[int, ...]) -> float:
        """Of the loss by hand, when one number of a tensor moves."""
        found = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                place[number] += shift
                answers = [of.logits_student, *(branch(features) for branch in method.branches)]
                found.append(one_by_hand(answers, features, method.gate, of.labels, 3, 10, 3.0, target))
                place[number] -= shift
        return (found[0] - found[1]) / 2e-5

    assert of_logits[2, 1].item() == pytest.approx(slope(of.logits_student, (2, 1)), rel=1e-6, abs=1e-9)
    assert of_bias[1].item() == pytest.approx(slope(method.gate[1].bias, (1,)), rel=1e-6, abs=1e-9)
    assert abs(of_bias[1].item()) > 1e-4


def test_ones_target_on_another_view_has_no_gradient_and_moves_no_statistics():
    _, losses = one()
    of = outputs_of_one(losses, one_view=False)
    (features,), (theirs,), method = of.features_student.values(), of.features_self.values(), losses.state["one"]
    of.logits_self.requires_grad_()
    theirs.requires_grad_()
    buffers = {name: value.clone() for name, value in losses.named_buffers()}
    method._target(of.logits_self, theirs)
    assert all(torch.equal(value, buffers[name]) for name, value in losses.named_buffers())
    assert all(module.training for module in losses.modules())
    loss = losses(of, {"one": 1.0})["one"]
    with torch.no_grad():
        method.eval()
        answers = [of.logits_self, *(branch(theirs) for branch in method.branches)]
        weights = method.gate(theirs.mean((2, 3))).softmax(1)
        target = sum(weights[:, b, None] * answer for b, answer in enumerate(answers))
        method.train()
    own = [of.logits_student, *(branch(features) for branch in method.branches)]
    assert loss.item() == pytest.approx(
        one_by_hand(own, features, method.gate, of.labels, 3, 10, 3.0, target), rel=1e-10
    )
    assert torch.autograd.grad(loss, [of.logits_self, theirs], allow_unused=True) == (None, None)


def test_branches_start_apart():
    student, losses = one()
    states = [student.state_dict(), *(branch.state_dict() for branch in losses.state["one"].members())]
    for name in ("classifier.weight", "classifier.bias"):
        values = [state[name] for state in states]
        assert not any(torch.equal(a, b) for i, a in enumerate(values) for b in values[i + 1 :])


@pytest.mark.parametrize("mode", ["shared_student", "independent"])
def test_peers_take_one_synchronous_step(digits, mode):
    """One batch of 20: both losses of the networks as they were, then both updates; the peer sees its role's view."""
    settings = tiny_settings(
        DML, FLOAT, f"distill.view_mode={mode}", "distill.temperature=2", "training.weight_decay=0",
        "training.momentum=0", "training.learning_rate_schedule=constant", "training.learning_rate=0.05",
    )  # fmt: skip
    learner, copies = learner_of(settings, tuple(Role)), learner_of(settings, tuple(Role)).networks
    trainer = new_trainer(settings, digits, settings.search_space(), CPU, None)
    trainer.train(learner, views, end_epoch=1, total_epochs=1, stream="a")

    rows = digits.train
    batch = whole_batch(trainer, rows)
    seen = {Role.STUDENT: batch.student_view}
    seen[Role.TEACHER] = batch.student_view if mode == "shared_student" else batch.teacher_view
    logits = {role: copies[role].train()(seen[role]) for role in Role}
    for role, other in ((Role.STUDENT, Role.TEACHER), (Role.TEACHER, Role.STUDENT)):
        q, p = logits[role].log_softmax(1), (logits[other].detach() / 2).softmax(1)
        soft = (logits[role] / 2).log_softmax(1)
        loss = -q[torch.arange(20), batch.labels].mean() + 4 * (p * (p.log() - soft)).sum() / 20
        parameters = dict(copies[role].named_parameters())
        slopes = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
        for (name, value), slope in zip(parameters.items(), slopes, strict=True):
            found = dict(learner.networks[role].named_parameters())[name]
            torch.testing.assert_close(found, value - 0.05 * slope, rtol=1e-3, atol=2e-5, msg=f"{role} {name}")


def whole_batch(trainer: Trainer, rows: torch.Tensor) -> Batch:
    chains = {role: trainer.views.chain(RoleAgents(), views(role, 0)) for role in Role}
    return Batch(trainer.source, rows, torch.arange(len(rows)), 0, chains)


def test_ones_views(digits):
    """Who is run on which view: apart, the trunk is run once more, evaluated and without gradient."""
    settings = tiny_settings(ONE, FLOAT, "distill.view_mode=independent")
    learner = learner_of(settings, (Role.STUDENT,))
    trainer = new_trainer(settings, digits, settings.search_space(), CPU, None)
    trainer.equip(learner, 0)
    student, batch = learner.networks[Role.STUDENT], whole_batch(trainer, digits.train)
    found = {}
    for mode in ("independent", "shared_student", "teacher_clean"):
        distiller = replace_view_mode(trainer, learner, mode)
        before = {name: value.clone() for name, value in student.named_buffers()}
        logits_self, features = distiller._teach_self(*batch.seen_by(mode), 20)
        assert all(torch.equal(value, before[name]) for name, value in student.named_buffers())
        if logits_self is not None:
            assert not any(value.requires_grad for value in (logits_self, *features.values()))
        found[mode] = logits_self
    student.eval()
    assert torch.equal(found["independent"], student(batch.teacher_view))
    assert (
        torch.equal(found["teacher_clean"], student(batch.view(None, Role.STUDENT))) and found["shared_student"] is None
    )


def replace_view_mode(trainer: Trainer, learner: Learner, mode: str) -> Distiller:
    distill = trainer.settings.distill.model_copy(update={"view_mode": mode})
    for network in learner.networks.values():
        network.train()
    found = Steps(
        trainer.settings.model_copy(update={"distill": distill}),
        learner,
        learner.networks.get(Role.TEACHER, trainer.frozen_teacher),
        dtype=trainer.dtype,
        sharding=trainer.sharding,
        normalisation=(trainer.views.mean, trainer.views.std),
    ).distiller
    assert found is not None
    return found


# ---- whole trainings


def final_training(folder: Path, losses: str, teacher: Path | None = None, *overrides: str) -> FinalTraining:
    settings = tiny_settings(losses, FLOAT, "distill.view_mode=shared_student", "final.train=40", *overrides)
    schedule = Schedule(settings.search_space(), {role: (Segment(3, some_policy(settings, role)),) for role in Role})
    return FinalTraining(settings, Role.STUDENT, folder, schedule, teacher)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    """A wider one, so that `hint` needs a regressor."""
    folder = tmp_path_factory.mktemp("online") / "teacher"
    settings = tiny_settings(FLOAT, "teacher.model=resnet8x4", "final.epochs=1", "final.train=40")
    train_final(FinalTraining(settings, Role.TEACHER, folder))
    return folder


@pytest.mark.parametrize("losses", [ONE, DML, HINT])
def test_killed_and_gone_on_with_it_ends_in_the_same_weights(tmp_path, losses, teacher):
    """`kill -9` as the second epoch's state is about to appear: branches, peer and regressors are in the first's."""
    given = (teacher, "teacher.model=resnet8x4") if losses == HINT else (None,)
    whole, killed = (final_training(tmp_path / name, losses, *given) for name in ("whole", "killed"))
    train_final(whole)

    def work():
        die_at(1, ["os.rename"], str(tmp_path))
        train_final(killed)

    assert in_a_fork(work) == -signal.SIGKILL
    (state,) = (tmp_path / "killed.partial").glob("0*")
    tree = load_checkpoint(state)[0]
    if losses != DML:
        kept = {"one.branches.0": 1, "one.gate": 1} if losses == ONE else {"hint": 1}
        assert all(any(part in name for name in tree["losses"]) for part in kept)
        of_student = len(list(build_network("resnet8", num_classes=10, channels=1).parameters()))
        assert len(tree["optimizers"]["student"]["state"]) > of_student, "their momentum is kept"
    train_final(killed)
    assert same_tree(load_checkpoint(killed.folder)[0], load_checkpoint(whole.folder)[0])


@pytest.mark.parametrize(("losses", "names"), [(ONE, ["student", "branch 2", "branch 3"]), (DML, ["student", "peer"])])
@pytest.mark.parametrize("best", [1, -1])
def test_the_network_that_is_best_on_validation_is_kept(tmp_path, monkeypatch, losses, names, best):
    found: list[str] = []
    real = candidates

    def spoiled(learner, settings, role):
        """All but one answer at random: their last layer is drawn anew."""
        every = real(learner, settings, role)
        found.extend(one.name for one in every)
        keep = every[best].name
        for one in every:
            if one.name != keep:
                with torch.no_grad():
                    for name, value in one.state.items():
                        if name.startswith("classifier"):
                            value.zero_()
        return every

    monkeypatch.setattr(final, "candidates", spoiled)
    opened, load = [], data_module.load_image_set
    monkeypatch.setattr(
        data_module, "load_image_set", lambda *a, split, **k: (opened.append(split), load(*a, split=split, **k))[1]
    )
    training = final_training(tmp_path / "net", losses, None, "final.epochs=3", "training.learning_rate=0.05")
    metrics = train_final(training)
    assert found == names
    assert set(opened) == {"train"}, "test images stay closed"
    monkeypatch.undo()
    network, _ = load_network(training.folder, Role.STUDENT, model="resnet8")
    assert network.state_dict()["classifier.weight"].any(), "one that answers at random was kept"
    shown = evaluate_checkpoint(training.folder, training.settings.data)
    assert shown["validation_accuracy"] == pytest.approx(metrics["validation_accuracy"], abs=1e-6)


def test_branches_and_their_momentum_survive_an_exploit(tmp_path):
    """A recipient goes on from the donor's whole state, as the donor itself would."""

    def job(member: int, generation: int, donor: int) -> Job:
        return Job(
            member, generation, donor if generation else None, generation, generation + 1, 4, {Role.STUDENT: Policy()}
        )

    settings = tiny_settings(ONE, FLOAT, "data.train=40")
    states = tmp_path / "states"

    def worker() -> TrainingWorker:
        return TrainingWorker(Task(settings, states, (Role.STUDENT,)))

    worker().train(job(0, 0, 0))
    tree = load_checkpoint(states / job(0, 0, 0).state)[0]
    copied = worker()
    learner = copied._learner(job(5, 1, 0))
    assert same_tree(learner.tree()["losses"], tree["losses"]) and len(tree["losses"]) > 10
    assert same_tree(learner.tree()["optimizers"], tree["optimizers"])
    # In one worker, whose last state is still in memory, and in two: equal
    one = worker()
    one.train(job(1, 0, 1))
    one.train(job(1, 1, 1))
    warm = load_checkpoint(states / job(1, 1, 1).state)[0]
    again = TrainingWorker(Task(settings, tmp_path / "other", (Role.STUDENT,)))
    again.train(job(1, 0, 1))
    cold = TrainingWorker(Task(settings, tmp_path / "other", (Role.STUDENT,)))
    cold.train(job(1, 1, 1))
    assert same_tree(warm, load_checkpoint(tmp_path / "other" / job(1, 1, 1).state)[0])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("losses", "protocol"),
    [
        (ONE, "coevolve"),
        (DML, "sequential"),
        pytest.param(ONE, "sequential", marks=SLOW),
        pytest.param(DML, "coevolve", marks=SLOW),
    ],
)
def test_whole_runs(tmp_path, protocol, losses):
    settings = tiny_settings(
        losses, FLOAT, f"search.protocol={protocol}", "search.population_size=2", "search.epochs=2",
        "distill.view_mode=independent", "final.epochs=1", "data.train=40", "final.train=40",
    )  # fmt: skip
    outcome = start_run(settings, storage=tmp_path, name="a", local=True)
    assert [row["network"] for row in outcome.rows] == [
        "student alone", "student distilled, no augmentation", "student distilled, found schedule",
    ]  # fmt: skip
    assert set(outcome.schedule.roles) == set(Role), "the teacher's role is a view"
    networks = load_checkpoint(outcome.best_state)[0]["networks"]
    assert set(networks) == ({"student"} if losses == ONE else {"student", "teacher"})
