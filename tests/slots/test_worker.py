import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rolekd_ray.config import Settings, load_settings
from rolekd_ray.distill.losses import Losses
from rolekd_ray.distill.outputs import Outputs
from rolekd_ray.errors import CheckpointError, TrainingError
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import Policy, random_policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.slots.actor import Slot
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training import data as data_module
from rolekd_ray.training.checkpoint import TENSORS, load_checkpoint
from rolekd_ray.training.distiller import Distiller
from rolekd_ray.training.epochs import Trainer
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network
from rolekd_ray.training.views import Views

TINY = (
    "data.train=40",
    "data.validation=60",
    "final.train=40",
    "final.epochs=2",
    "teacher.model=resnet8",
    "training.batch_size=20",
    "training.precision=float32",  # references are
    "base_augmentation.crop_padding_pixels=1",
)
BOTH = tuple(Role)
INTERVAL, TOTAL = 2, 6


def tiny_settings(*overrides: str) -> Settings:
    return load_settings("quickstart", [*TINY, *overrides])


def policy(role: Role, seed: int) -> Policy:
    return random_policy(tiny_settings().search_space(), role, random.Random(f"{seed} {role}"))


def job(member: int, generation: int, donor: int | None = None, roles: tuple[Role, ...] = BOTH) -> Job:
    """Generation g trains epochs 2 g and 2 g + 1; from the member's own state unless another is named."""
    donor = None if generation == 0 else member if donor is None else donor
    start = generation * INTERVAL
    return Job(member, generation, donor, start, start + INTERVAL, TOTAL, {r: policy(r, member) for r in roles})


def worker(states: Path, *overrides: str, roles: tuple[Role, ...] = BOTH, **task: Any) -> TrainingWorker:
    return TrainingWorker(Task(tiny_settings(*overrides), states, roles, **task))


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def results(metrics: dict[str, Any]) -> dict[str, Any]:
    """All that is not a time."""
    return {key: value for key, value in metrics.items() if not key.endswith("_seconds")}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worker") / "teacher"
    train_final(FinalTraining(tiny_settings(), Role.TEACHER, folder))
    return folder


@pytest.fixture
def epochs(monkeypatch) -> list[int]:
    """Every epoch trained from here on."""
    trained: list[int] = []
    real = Trainer._epoch

    def spy(self, learner, *rest):
        trained.append(learner.epoch)
        return real(self, learner, *rest)

    monkeypatch.setattr(Trainer, "_epoch", spy)
    return trained


# ---- an interval is a function of its job and its source


Reference = tuple[Path, str, dict[str, Any]]


def make_reference(states: Path, optimizer: str) -> Reference:
    """Train two generations of two members, each interval in a worker of its own: nothing can leak."""
    override, metrics = f"training.optimizer={optimizer}", {}
    for one in (job(0, 0), job(1, 0), job(0, 1), job(1, 1, donor=0)):
        metrics[one.state] = results(worker(states, override).train(one))
    return states, override, metrics


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    return make_reference(tmp_path_factory.mktemp("reference"), "adam")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_worker_that_goes_from_member_to_member(reference, tmp_path, monkeypatch, optimizer):
    """Held states and files, own states and donors': all the same to the last bit, optimisers and buffers included."""
    if optimizer not in reference[1]:
        reference = make_reference(tmp_path / "reference", optimizer)
    states, override, metrics = reference
    loaded = []

    def spy(folder):
        loaded.append(Path(folder).name)
        return load_checkpoint(folder)

    monkeypatch.setattr("rolekd_ray.slots.worker.load_checkpoint", spy)
    mine = tmp_path / "mine"
    one = worker(mine, override)
    # 0-1 starts from what the worker holds; 1-1 too late for that, from 0's file; in the other order 0-1 does
    orders = [[job(1, 0), job(0, 0), job(0, 1), job(1, 1, donor=0)], [job(1, 0), job(0, 0), job(1, 1, 0), job(0, 1)]]
    for order in orders:
        shutil.rmtree(mine, ignore_errors=True)
        loaded.clear()
        for each in order:
            found = one.train(each)
            assert results(found) == metrics[each.state]
            assert found["score"] == found["student/validation_accuracy"]
            assert same(load_checkpoint(mine / each.state)[0], load_checkpoint(states / each.state)[0]), each.state
        # each job looks for its own state; beyond that only one source came from its file, the other was held
        assert sorted(loaded) == sorted([*(each.state for each in order), "000-0000"])


def test_another_process_ends_in_the_same_weights(reference, tmp_path):
    states, override, metrics = reference
    script = (
        "import json, sys; from pathlib import Path; import test_worker as t\n"
        "one = t.worker(Path(sys.argv[1]), sys.argv[2])\n"
        "print(json.dumps([t.results(one.train(j)) for j in (t.job(0, 0), t.job(1, 1, donor=0))]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", script, str(tmp_path), override]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [metrics[state] for state in ("000-0000", "001-0001")]
    for state in ("000-0000", "001-0001"):
        assert same(load_checkpoint(tmp_path / state)[0], load_checkpoint(states / state)[0])


def test_a_job_whose_state_lies_there_is_not_trained_again(reference, epochs):
    states, override, metrics = reference
    stored = load_checkpoint(states / "000-0001")[1]["metrics"]
    assert worker(states, override).train(job(0, 1)) == stored
    assert results(stored) == metrics["000-0001"] and not epochs


def copied(reference, tmp_path) -> tuple[TrainingWorker, Path]:
    states, override, _ = reference
    shutil.copytree(states, tmp_path / "states")
    return worker(tmp_path / "states", override), tmp_path / "states" / "000-0001"


@pytest.mark.parametrize("damage", ["tensors", "description", "gone"])
def test_a_damaged_state_is_trained_again(reference, tmp_path, epochs, damage):
    one, folder = copied(reference, tmp_path)
    if damage == "tensors":
        data = bytearray((folder / TENSORS).read_bytes())
        data[-5] ^= 1
        (folder / TENSORS).write_bytes(data)
    else:
        (folder / "checkpoint.json").write_text("{") if damage == "description" else shutil.rmtree(folder)
    assert results(one.train(job(0, 1))) == reference[2]["000-0001"]
    assert epochs == [2, 3]
    assert same(load_checkpoint(folder)[0], load_checkpoint(reference[0] / "000-0001")[0])


def test_the_state_of_another_job_is_trained_over(reference, tmp_path, epochs):
    one, folder = copied(reference, tmp_path)
    other = job(0, 1, donor=1)
    found = one.train(other)
    assert epochs == [2, 3] and results(found) != reference[2]["000-0001"]
    assert load_checkpoint(folder)[1]["job"]["donor"] == 1


def test_a_damaged_or_missing_source_is_an_error_that_names_it(reference, tmp_path):
    one, folder = copied(reference, tmp_path)
    shutil.rmtree(folder)
    source = folder.with_name("000-0000")
    (source / TENSORS).write_bytes((source / TENSORS).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"000-0000.*damaged"):
        one.train(job(0, 1))
    shutil.rmtree(source)
    with pytest.raises(CheckpointError, match="000-0000: no such checkpoint"):
        one.train(job(0, 1))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [("student.model=resnet14", "student: of another architecture"), ("teacher.model=wrn_10_2", "teacher: of another")],
)
def test_a_source_of_another_architecture(tmp_path, override, said):
    worker(tmp_path).train(job(0, 0))
    with pytest.raises(CheckpointError, match=f"000-0000: {said}"):
        worker(tmp_path, override).train(job(0, 1))


def test_a_source_of_other_roles(tmp_path):
    worker(tmp_path, roles=(Role.TEACHER,)).train(job(0, 0, roles=(Role.TEACHER,)))
    with pytest.raises(CheckpointError, match=r"000-0000: holds networks of \['teacher'\]"):
        worker(tmp_path).train(job(0, 1))


def test_a_teacher_of_another_architecture(tmp_path, teacher):
    one = worker(tmp_path, "teacher.model=resnet14", roles=(Role.STUDENT,), teacher=teacher)
    with pytest.raises(CheckpointError, match="model: got 'resnet8'; expected 'resnet14'"):
        one.train(job(0, 0, roles=(Role.STUDENT,)))


# ---- failures


def test_a_loss_that_is_not_finite(tmp_path):
    one = worker(tmp_path, "training.learning_rate=1e12")
    with pytest.raises(TrainingError, match=r"^000-0000: epoch [01]: loss is not finite: .*nan"):
        one.train(job(0, 0))
    assert not (tmp_path / "000-0000").exists()


def test_weights_that_the_last_step_broke(tmp_path):
    """The loss of the only batch was still finite; the next interval could not start from such a state."""
    one = worker(tmp_path, "training.learning_rate=1e30", "data.train=20", roles=(Role.TEACHER,))
    with pytest.raises(TrainingError, match=r"^000-0000: epoch 0: loss is not finite: .*validation_loss nan"):
        one.train(Job(0, 0, None, 0, 1, 6, {Role.TEACHER: Policy()}))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_behind_in_the_worker(reference, tmp_path, monkeypatch):
    one, folder = copied(reference, tmp_path)
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name("000-0000"))
    one.train(job(0, 0))  # held from here on
    real = Trainer._epoch

    def fails_late(self, learner, *rest):
        real(self, learner, *rest)
        raise TrainingError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", fails_late)
        with pytest.raises(TrainingError, match="on purpose"):
            one.train(job(0, 1))
    assert results(one.train(job(0, 1))) == reference[2]["000-0001"]
    assert same(load_checkpoint(folder)[0], load_checkpoint(reference[0] / "000-0001")[0])


# ---- teachers


def test_a_frozen_teacher_is_neither_trained_nor_changed(tmp_path, teacher):
    before = (teacher / TENSORS).read_bytes()
    one = worker(tmp_path, "distill.view_mode=independent", roles=(Role.STUDENT,), teacher=teacher)
    frozen = one.trainer.frozen_teacher
    assert frozen is not None
    copy = {name: value.clone() for name, value in frozen.state_dict().items()}
    for generation in range(2):
        one.train(job(0, generation, roles=(Role.STUDENT,)))
    assert same(dict(frozen.state_dict()), copy) and not frozen.training
    assert one.trainer.frozen_teacher is frozen and (teacher / TENSORS).read_bytes() == before
    tree, about = load_checkpoint(tmp_path / "000-0001")
    assert list(tree["networks"]) == ["student"] and about["models"] == {"student": "resnet8"}


def test_several_frozen_teachers_of_other_networks_than_the_settings_name(tmp_path, teacher):
    """Twice the same teaches as it does alone, up to rounding; each member's BatchNorms are folded."""
    metrics = []
    for name, given in (("alone", teacher), ("twice", (teacher, teacher))):
        model = "teacher.model=resnet14" if name == "twice" else "teacher.model=resnet8"
        one = worker(tmp_path / name, model, roles=(Role.STUDENT,), teacher=given)
        metrics.append(one.train(job(0, 0, roles=(Role.STUDENT,))))
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in one.trainer.frozen_teacher.modules())
    assert metrics[0]["student/hinton"] == pytest.approx(metrics[1]["student/hinton"], rel=1e-3)
    assert metrics[0]["student/hinton"] > 0.01
    by_logits = worker(tmp_path, "teacher.combine=logits", roles=(Role.STUDENT,), teacher=(teacher, teacher))
    assert [one.trainer.frozen_teacher.combine, by_logits.trainer.frozen_teacher.combine] == ["probabilities", "logits"]


def test_coevolving_trains_both_and_the_teacher_by_its_own_training_alone(tmp_path):
    """Its weights, optimiser and BatchNorm buffers are bit-equal to those of a worker that has no student."""
    worker(tmp_path / "both").train(job(0, 0))
    metrics = worker(tmp_path / "alone", roles=(Role.TEACHER,)).train(job(0, 0, roles=(Role.TEACHER,)))
    both, alone = (load_checkpoint(tmp_path / name / "000-0000")[0] for name in ("both", "alone"))
    for part in ("networks", "optimizers"):
        assert same(both[part]["teacher"], alone[part]["teacher"])
    assert metrics["score"] == metrics["teacher/validation_accuracy"]
    fresh = worker(tmp_path / "none")._learner(job(0, 0)).tree()
    for role in Role:
        for name in ("conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked"):
            assert not torch.equal(both["networks"][role][name], fresh["networks"][role][name]), (role, name)


# ---- validation


def answers_of(network, one: TrainingWorker) -> list[list[float]]:
    """Logits, image by image, on the validation images."""
    held_out = one.data.image_set.subset(one.data.validation)
    mean, std = (value.view(-1, 1, 1) for value in one.data.statistics)
    with torch.no_grad():
        return [network.eval()((image / 255 - mean)[None] / std)[0].tolist() for image in held_out.images]


def network_of(folder: Path, role: Role) -> torch.nn.Module:
    return load_network(folder, role)[0]


def agreement_by_loop(one: list[list[float]], other: list[list[float]]) -> float:
    return sum(a.index(max(a)) == b.index(max(b)) for a, b in zip(one, other)) / len(one)


def test_metrics_of_every_role_and_agreement_with_the_teacher_that_learns(tmp_path):
    one = worker(tmp_path)
    metrics = one.train(job(0, 0))
    labels = one.data.image_set.subset(one.data.validation).labels.tolist()
    answers = {role: answers_of(network_of(tmp_path / "000-0000", role), one) for role in Role}
    for role in Role:
        guesses = [row.index(max(row)) for row in answers[role]]
        by_class = [[g == label for g, label in zip(guesses, labels) if label == k] for k in range(10)]
        expected = [round(sum(right) / len(right), 4) for right in by_class]
        assert metrics[f"{role}/validation_class_accuracy"] == expected
        assert metrics[f"{role}/validation_lowest_class_accuracy"] == pytest.approx(min(expected), abs=1e-4)
        assert 0 <= metrics[f"{role}/validation_accuracy"] <= metrics[f"{role}/validation_top5_accuracy"] < 1
        assert metrics[f"{role}/validation_entropy"] > 0 < metrics[f"{role}/validation_calibration_error"]
    expected = agreement_by_loop(answers[Role.STUDENT], answers[Role.TEACHER])
    assert metrics["student/validation_teacher_agreement"] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1 and "teacher/validation_teacher_agreement" not in metrics
    assert json.loads(json.dumps(metrics)) == metrics, "the log could not hold it"


def test_agreement_with_a_frozen_teacher_that_is_asked_once(tmp_path, teacher, monkeypatch):
    one, asked = worker(tmp_path, roles=(Role.STUDENT,), teacher=teacher), []
    answer = TrainingWorker._answers
    monkeypatch.setattr(TrainingWorker, "_answers", lambda self, net: asked.append(net) or answer(self, net))
    theirs = answers_of(network_of(teacher, Role.TEACHER), one)
    for number, member in enumerate((0, 1, 2)):
        metrics = one.train(job(member, 0, roles=(Role.STUDENT,)))
        ours = answers_of(network_of(tmp_path / f"00{member}-0000", Role.STUDENT), one)
        assert metrics["student/validation_teacher_agreement"] == pytest.approx(agreement_by_loop(ours, theirs))
        assert asked.count(one.trainer.frozen_teacher) == 1 and len(asked) == 2 + number
    assert 0 < metrics["student/validation_teacher_agreement"] < 1


def test_no_teacher_no_agreement(tmp_path):
    for roles in ((Role.STUDENT,), (Role.TEACHER,)):
        metrics = worker(tmp_path / roles[0], roles=roles).train(job(0, 0, roles=roles))
        assert not any("agreement" in name for name in metrics)


# ---- what feeds what


class Watched:
    """What networks were fed and what the loss was given, batch by batch."""

    def __init__(self, monkeypatch):
        self.inputs: list[tuple[torch.nn.Module, bool, torch.Tensor]] = []
        self.losses: list[Outputs] = []
        forward, losses = Distiller.forward, Losses.forward

        def spy_forward(distiller, network, view, capture):
            self.inputs.append((network, network.training, view.clone()))
            return forward(distiller, network, view, capture)

        def spy_loss(self_, outputs, weights):
            self.losses.append(outputs)
            return losses(self_, outputs, weights)

        monkeypatch.setattr(Distiller, "forward", spy_forward)
        monkeypatch.setattr(Losses, "forward", spy_loss)


@pytest.mark.parametrize("mode", ["shared_student", "shared_teacher", "independent", "teacher_clean"])
def test_each_view_mode_feeds_what_it_says(tmp_path, teacher, mode, monkeypatch):
    watched, batches = Watched(monkeypatch), []
    make = Trainer._batches
    monkeypatch.setattr(Trainer, "_batches", lambda self, key: batches.append(found := make(self, key)) or found)
    fixed = Schedule(
        tiny_settings().search_space(),
        {Role.TEACHER: (Segment(1, policy(Role.TEACHER, 50)), Segment(1, policy(Role.TEACHER, 51)))},
    )
    one = worker(tmp_path, f"distill.view_mode={mode}", roles=(Role.STUDENT,), teacher=teacher, fixed=fixed)
    metrics = one.train(job(3, 0, roles=(Role.STUDENT,)))
    assert 0 < metrics["score"] < 1 and {"student/loss", "student/hinton", "student/cross_entropy"} <= metrics.keys()
    assert len(watched.inputs) == 8 and len(watched.losses) == 4  # 2 epochs of 2 batches

    settings, data = one.settings, one.data
    views = Views(settings.base_augmentation, settings.search_space(), *data.statistics, seed=settings.seed)
    for number, places in enumerate(place for epoch in batches for place in epoch):
        epoch, images = number // 2, data.image_set.images[places]
        by_role = {}
        for role, of_epoch in (
            (Role.STUDENT, policy(Role.STUDENT, 3)),
            (Role.TEACHER, policy(Role.TEACHER, 50 + epoch)),
        ):
            agent = views.agent([(1.0, of_epoch)])
            by_role[role] = views.view(agent, images, places, role=role, epoch=epoch)
        own, theirs, clean = by_role[Role.STUDENT], by_role[Role.TEACHER], views.clean(images)
        assert not torch.equal(own, theirs) and not torch.equal(own, clean)
        for_student, for_teacher = {
            "shared_student": (own, own),
            "shared_teacher": (theirs, theirs),
            "independent": (own, theirs),
            "teacher_clean": (own, clean),
        }[mode]
        (fed_first, teaching, seen_by_teacher), (fed_second, learning, seen) = watched.inputs[
            2 * number : 2 * number + 2
        ]
        assert fed_first is one.trainer.frozen_teacher and fed_second is not fed_first
        assert (teaching, learning) == (False, True)
        assert torch.equal(seen_by_teacher, for_teacher) and torch.equal(seen, for_student)
        outputs = watched.losses[number]
        assert torch.equal(outputs.labels, data.image_set.labels[places])
        assert outputs.temperature == policy(Role.STUDENT, 3).scalars["temperature"]
        assert not outputs.logits_teacher.requires_grad and outputs.logits_student.requires_grad
        with torch.no_grad():
            assert torch.allclose(outputs.logits_teacher, one.trainer.frozen_teacher(for_teacher), atol=1e-5)


def test_a_role_that_does_not_evolve_follows_the_fixed_schedule_or_none(tmp_path, teacher):
    one = worker(tmp_path, roles=(Role.STUDENT,), teacher=teacher)
    assert one._policies(job(0, 0, roles=(Role.STUDENT,)), Role.TEACHER, 0) == [(1.0, Policy())]


def test_held_out_images_and_the_test_file_stay_closed(tmp_path, teacher, monkeypatch):
    """Only training images are ever augmented; opening the test split fails."""
    seen: set[int] = set()
    view, load = Views.view, data_module.load_image_set

    def spy_view(self, agent, images, indices, **key):
        seen.update(indices.tolist())
        return view(self, agent, images, indices, **key)

    def train_only(*args, split, **options):
        assert split == "train", "the worker opened the test split"
        return load(*args, split=split, **options)

    monkeypatch.setattr(Views, "view", spy_view)
    monkeypatch.setattr(data_module, "load_image_set", train_only)
    with pytest.raises(AssertionError, match="opened the test split"):
        data_module.open_images(tiny_settings().data, "test")
    one = worker(tmp_path, "distill.view_mode=independent", roles=(Role.STUDENT,), teacher=teacher)
    for generation in range(3):
        one.train(job(0, generation, roles=(Role.STUDENT,)))
    train, held_out = set(one.data.train.tolist()), set(one.data.validation.tolist())
    assert len(train) == 40 and len(held_out) == 60 and not train & held_out
    assert seen == train


def test_the_state_says_all_that_its_use_needs(tmp_path):
    one = worker(tmp_path)
    first = job(2, 0)
    metrics = one.train(first)
    tree, about = load_checkpoint(tmp_path / "002-0000")
    assert tree["epoch"] == 2 and set(tree["networks"]) == set(tree["optimizers"]) == {"teacher", "student"}
    assert about["job"] == first.to_dict(tiny_settings().search_space()) and about["metrics"] == metrics
    assert about["models"] == {"teacher": "resnet8", "student": "resnet8"} and about["data"]["source"] == "digits"
    assert {"load_seconds", "train_seconds", "validation_seconds"} <= metrics.keys()


def test_a_slot_builds_its_worker_once_and_in_its_own_process(tmp_path):
    made = []
    slot = Slot(lambda: made.append(1) or worker(tmp_path))
    assert not made
    assert slot.prepare() == slot.prepare() == os.getpid() and made == [1]
    assert slot.train(job(0, 0))["score"] == worker(tmp_path).train(job(0, 0))["score"] and made == [1]
