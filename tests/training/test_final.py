import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import die_at, in_a_fork, same_tree, some_policy, tiny_settings

from rolekd_ray.errors import TrainingError
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.roles import Role
from rolekd_ray.training import data as data_module
from rolekd_ray.training.checkpoint import TENSORS, load_checkpoint, save_checkpoint
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.epochs import Trainer
from rolekd_ray.training.evaluation import evaluate
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network
from rolekd_ray.training.views import Views

EPOCHS = 3
SETTINGS = tiny_settings(f"final.epochs={EPOCHS}", "final.train=40", "distill.view_mode=independent")


def schedule(seed: int = 0) -> Schedule:
    """Two segments per role; half as long as the training, so that it is stretched."""
    return Schedule(
        SETTINGS.search_space(),
        {role: tuple(Segment(1, some_policy(SETTINGS, role, seed + i)) for i in range(2)) for role in Role},
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("final") / "teacher"
    train_final(FinalTraining(SETTINGS, Role.TEACHER, folder, schedule()))
    return folder


def student(folder: Path, teacher: Path, changes: dict[str, Any] | None = None) -> FinalTraining:
    usual = {"settings": SETTINGS, "schedule": schedule(), "teacher": teacher}
    return FinalTraining(role=Role.STUDENT, folder=folder, **(usual | (changes or {})))


@pytest.fixture(scope="module")
def whole(teacher) -> Path:
    """A distilled student, trained in one go."""
    folder = teacher.parent / "whole"
    train_final(student(folder, teacher))
    return folder


def networks(folder: Path):
    return load_checkpoint(folder)[0]["networks"]


def epochs_trained(monkeypatch) -> list[int]:
    """Return a list that every epoch trained from here on is added to."""
    epochs: list[int] = []
    real = Trainer._epoch

    def spy(self, learner, *rest):
        epochs.append(learner.epoch)
        return real(self, learner, *rest)

    monkeypatch.setattr(Trainer, "_epoch", spy)
    return epochs


@pytest.fixture
def no_training(monkeypatch):
    """From here on, training is a failure."""

    def refuse(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(Trainer, "train", refuse)


def test_the_checkpoint_is_whole_and_its_metrics_are_the_networks(whole, teacher):
    tree, description = load_checkpoint(whole)
    assert list(tree) == ["networks"] and list(tree["networks"]) == ["student"]
    assert description["models"] == {"student": "resnet8"} and description["teacher"] == str(teacher)
    data = open_training_data(SETTINGS.data, train=40)
    views = Views(SETTINGS.base_augmentation, SETTINGS.search_space(), *data.statistics, seed=0)
    network, _ = load_network(whole, Role.STUDENT)
    held_out = data.image_set.subset(data.validation)
    found = evaluate(network, held_out.images, held_out.labels, views, dtype=torch.float32)
    for name, value in found.to_dict().items():
        assert description["metrics"][f"validation_{name}"] == pytest.approx(value, abs=1e-5)
    assert description["metrics"]["validation_images"] == 60 and description["metrics"]["seconds"] > 0
    assert sorted(os.listdir(whole.parent)) == ["teacher", "whole"]  # nothing partial is left


@pytest.mark.parametrize(("killed_at", "done"), [(0, 0), (1, 1), (2, 2)])
def test_killed_at_any_save_and_gone_on_with_it_ends_in_the_same_weights(
    tmp_path, whole, teacher, killed_at, done, monkeypatch
):
    """`kill -9` as the first epoch's state, the second's and the finished network are about to appear."""
    training = student(tmp_path / "student", teacher)

    def work():
        die_at(killed_at, ["os.rename"], str(tmp_path))
        train_final(training)

    assert in_a_fork(work) == -signal.SIGKILL
    assert not training.folder.exists()
    epochs = epochs_trained(monkeypatch)
    metrics = train_final(training)
    assert epochs == list(range(done, EPOCHS)), "what was done is not done again"
    assert same_tree(networks(training.folder), networks(whole))
    assert not (tmp_path / "student.partial").exists()
    stored = load_checkpoint(whole)[1]["metrics"]
    assert {key: metrics[key] for key in metrics if key != "seconds"} == {
        k: stored[k] for k in stored if k != "seconds"
    }
    assert metrics["seconds"] > 0.2 * stored["seconds"] * done / EPOCHS  # the earlier try's count too


def test_finished_is_finished(whole, teacher, no_training):
    assert train_final(student(whole, teacher)) == load_checkpoint(whole)[1]["metrics"]


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": schedule(7)},
        {"schedule": None},
        {"teacher": None},
        {"settings": SETTINGS.model_copy(update={"data": SETTINGS.data.model_copy(update={"validation": 50})})},
        {"settings": SETTINGS.model_copy(update={"final": SETTINGS.final.model_copy(update={"train": 39})})},
        {"settings": SETTINGS.model_copy(update={"final": SETTINGS.final.model_copy(update={"epochs": 4})})},
        {"settings": SETTINGS.model_copy(update={"seed": 1})},
    ],
)
def test_a_checkpoint_of_another_training_is_not_taken_for_this_one(whole, teacher, no_training, changes):
    with pytest.raises(AssertionError, match="trained"):
        train_final(student(whole, teacher, changes))


def test_settings_that_change_no_weight_do_not_train_again(whole, teacher, no_training):
    slots = SETTINGS.slots.model_copy(update={"count": 7})
    search = SETTINGS.search.model_copy(update={"population_size": 9, "perturbation_interval_epochs": 2})
    same = SETTINGS.model_copy(update={"slots": slots, "search": search})
    train_final(student(whole, teacher, {"settings": same}))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_damaged_network_is_trained_again(copy, whole, teacher):
    data = bytearray((copy / TENSORS).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / TENSORS).write_bytes(data)
    train_final(student(copy, teacher))
    assert same_tree(networks(copy), networks(whole))


def test_an_unfinished_training_of_another_plan_is_not_gone_on_with(copy, whole, teacher, tmp_path):
    plan = load_checkpoint(copy)[1]["plan"] | {"epochs": 9}
    tree = {"networks": networks(copy), "optimizers": {}, "epoch": 2}
    shutil.rmtree(copy)
    partial = tmp_path / "copy.partial"
    for name, about in (("000002", {"plan": plan, "seconds": 0.0}), ("000001", {"other": 1})):
        save_checkpoint(partial / name, tree, about)
    (partial / "000003").mkdir()
    train_final(student(copy, teacher))
    assert same_tree(networks(copy), networks(whole)) and not partial.exists()


def test_the_newest_whole_state_is_gone_on_with(whole, teacher, tmp_path, monkeypatch):
    training = student(tmp_path / "student", teacher)

    def work():
        die_at(2, ["os.rename"], str(tmp_path))
        train_final(training)

    assert in_a_fork(work) == -signal.SIGKILL
    newest = tmp_path / "student.partial" / "000002"
    shutil.copytree(newest, newest.with_name("000003"))
    (newest.with_name("000003") / TENSORS).write_bytes(b"damaged")
    trained = epochs_trained(monkeypatch)
    train_final(training)
    assert trained == [2] and same_tree(networks(training.folder), networks(whole))


def test_the_teacher_and_the_schedule_matter(whole, teacher, tmp_path):
    found = [networks(whole)]
    for changes in ({"teacher": None}, {"schedule": None}):
        train_final(student(tmp_path / "other", teacher, changes))
        found.append(networks(tmp_path / "other"))
    weights = [tree["student"]["conv1.weight"] for tree in found]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(("lengths", "in_force"), [((2, 4), "abb"), ((4, 2), "aab"), ((1, 1, 1), "abc")])
def test_the_schedule_is_stretched_to_the_training(tmp_path, teacher, monkeypatch, lengths, in_force):
    policies = dict(zip("abc", (some_policy(SETTINGS, Role.STUDENT, seed) for seed in range(3))))
    segments = tuple(Segment(epochs, policy) for epochs, policy in zip(lengths, policies.values()))
    found = []

    def spy(self, learner, policies_at, **lengths):
        learner.epoch = lengths["end_epoch"]
        found.append([policies_at(Role.STUDENT, epoch) for epoch in range(EPOCHS)])
        return {}

    monkeypatch.setattr(Trainer, "train", spy)
    train_final(
        student(tmp_path / "s", teacher, {"schedule": Schedule(SETTINGS.search_space(), {Role.STUDENT: segments})})
    )
    assert found == [[[(1.0, policies[letter])] for letter in in_force]] * EPOCHS


def test_held_out_images_are_never_trained_on_and_the_test_file_stays_closed(tmp_path, teacher, monkeypatch):
    seen: set[int] = set()
    opened: set[str] = set()
    view, load = Views.view, data_module.load_image_set

    def spy_view(self, agent, images, indices, **key):
        seen.update(indices.tolist())
        return view(self, agent, images, indices, **key)

    def spy_load(*args, split, **options):
        opened.add(split)
        return load(*args, split=split, **options)

    monkeypatch.setattr(Views, "view", spy_view)
    monkeypatch.setattr(data_module, "load_image_set", spy_load)
    train_final(student(tmp_path / "s", teacher))
    data = open_training_data(SETTINGS.data, train=SETTINGS.final.train)
    assert seen == set(data.train.tolist()) and not seen & set(data.validation.tolist())
    assert opened == {"train"}


def test_weights_that_the_last_step_broke_are_an_error(tmp_path, teacher):
    broken = tiny_settings("final.epochs=1", "final.train=20", "training.learning_rate=1e30")  # one step
    with pytest.raises(TrainingError, match=r"final student: epoch 0: loss is not finite: .*loss nan"):
        train_final(student(tmp_path / "s", teacher, {"settings": broken}))
    assert not (tmp_path / "s").exists()
