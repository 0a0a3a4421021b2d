import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rolekd_ray.config import DataSettings, Settings, load_settings
from rolekd_ray.errors import CheckpointError, DataError
from rolekd_ray.policy.jobs import Job
from rolekd_ray.policy.policy import Policy
from rolekd_ray.roles import Role
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.slots.interface import Task
from rolekd_ray.slots.worker import TrainingWorker
from rolekd_ray.training.checkpoint import load_checkpoint, save_checkpoint
from rolekd_ray.training.data import open_images, open_training_data
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network

TINY = ("data.train=80", "data.validation=70", "final.train=80", "final.epochs=4", "teacher.model=resnet8",
        "training.batch_size=20", "base_augmentation.crop_padding_pixels=1", "training.precision=float32")  # fmt: skip


def tiny_settings() -> Settings:
    return load_settings("quickstart", TINY)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a teacher and a student distilled from it."""
    folder = tmp_path_factory.mktemp("evaluation")
    train_final(FinalTraining(tiny_settings(), Role.TEACHER, folder / "teacher"))
    train_final(FinalTraining(tiny_settings(), Role.STUDENT, folder / "student", teacher=folder / "teacher"))
    return folder


def answers(folder: Path, role: Role, images: torch.Tensor) -> np.ndarray:
    """Classes a checkpoint names, image by image, normalised by what it says itself."""
    network, about = load_network(folder, role)
    mean, std = (np.array(about[key])[:, None, None] for key in ("mean", "std"))
    found = []
    for image in images.numpy():
        view = torch.from_numpy((image[None] / 255 - mean) / std).float()
        with torch.no_grad():
            found.append(int(network(view)[0].argmax()))
    return np.array(found)


def test_the_stored_validation_metrics_come_out_again(trained):
    for name, role in (("teacher", Role.TEACHER), ("student", Role.STUDENT)):
        stored = load_checkpoint(trained / name)[1]["metrics"]
        found = evaluate_checkpoint(trained / name, role=role)
        for key in ("validation_accuracy", "validation_loss", "validation_calibration_error", "validation_images"):
            assert found[key] == pytest.approx(stored[key], abs=1e-5), key
        assert found["seconds"] == stored["seconds"]
        assert found["validation_images"] == 70


def test_the_test_split_against_a_loop(trained):
    found = evaluate_checkpoint(trained / "student")
    test = open_images(tiny_settings().data, "test")
    student, teacher = (answers(trained / name, Role.STUDENT, test.images) for name in ("student", "teacher"))
    assert found["test_images"] == len(test) == 600
    assert found["test_accuracy"] == pytest.approx((student == test.labels.numpy()).mean(), abs=1e-6)
    assert found["test_teacher_agreement"] == pytest.approx((student == teacher).mean(), abs=1e-6)
    assert 0.15 < found["test_accuracy"] < 1 and 0 < found["test_teacher_agreement"] < 1  # it says something
    assert json.loads(json.dumps(found)) == found


def test_whose_teacher(trained, tmp_path):
    given = evaluate_checkpoint(trained / "student", teacher=trained / "student")
    assert given["test_teacher_agreement"] == 1
    assert "test_teacher_agreement" not in evaluate_checkpoint(trained / "teacher", role=Role.TEACHER)
    tree, about = load_checkpoint(trained / "student")
    save_checkpoint(tmp_path / "moved", tree, about | {"teacher": str(tmp_path / "gone")})
    assert "test_teacher_agreement" not in evaluate_checkpoint(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="gone: no such checkpoint"):
        evaluate_checkpoint(trained / "student", teacher=tmp_path / "gone")
    save_checkpoint(tmp_path / "colour", tree, about | {"channels": 3})
    with pytest.raises(CheckpointError, match="colour: of another architecture: channels: got 3; expected 1"):
        evaluate_checkpoint(trained / "student", teacher=tmp_path / "colour")


def mean_answers(folders: list[Path], images: torch.Tensor, combine: str) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities (N, K) of several checkpoints' mean, from each one's own description."""
    logits = []
    for folder in folders:
        network, about = load_network(folder, Role.STUDENT)
        mean, std = (torch.tensor(about[key])[:, None, None] for key in ("mean", "std"))
        with torch.no_grad():
            logits.append(network((images / 255 - mean) / std).double().numpy())
    each = [np.exp(values - values.max(1, keepdims=True)) for values in logits]
    if combine == "logits":
        found = np.exp(sum(logits) / len(logits))
    else:
        found = sum(values / values.sum(1, keepdims=True) for values in each)
    return found.argmax(1), found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_several_checkpoints_are_evaluated_as_their_ensemble(trained, combine):
    both = [trained / "student", trained / "teacher"]
    found = evaluate_checkpoint(tuple(both), combine=combine)
    test = open_images(tiny_settings().data, "test")
    named, probabilities = mean_answers(both, test.images, combine)
    assert found["test_accuracy"] == pytest.approx((named == test.labels.numpy()).mean(), abs=1e-6)
    of_labels = probabilities[np.arange(len(named)), test.labels.numpy()]
    assert found["test_loss"] == pytest.approx(-np.log(of_labels).mean(), rel=1e-5)
    assert found["seconds"] is None and "test_teacher_agreement" not in found
    alone = evaluate_checkpoint(trained / "student", teacher=tuple(both), combine=combine)
    own = answers(trained / "student", Role.STUDENT, test.images)
    assert alone["test_teacher_agreement"] == pytest.approx((own == named).mean(), abs=1e-6)
    assert 0 < alone["test_teacher_agreement"] < 1


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_agreement_with_the_ensemble_that_a_checkpoint_names(trained, tmp_path, combine):
    tree, about = load_checkpoint(trained / "student")
    both = [trained / "student", trained / "teacher"]
    named = {"teacher": [str(folder) for folder in both], "combine": combine}
    save_checkpoint(tmp_path / "taught", tree, about | named)
    found = evaluate_checkpoint(tmp_path / "taught")
    expected = evaluate_checkpoint(tmp_path / "taught", teacher=tuple(both), combine=combine)
    assert found == expected and "test_teacher_agreement" in found
    save_checkpoint(tmp_path / "alone", tree, about | {"teacher": [*named["teacher"], str(tmp_path / "gone")]})
    assert "test_teacher_agreement" not in evaluate_checkpoint(tmp_path / "alone"), "one of them is gone"


def test_an_ensemble_whose_others_saw_what_was_held_out_from_the_first(trained, tmp_path):
    tree, about = load_checkpoint(trained / "teacher")
    save_checkpoint(tmp_path / "other", tree, about | {"data": about["data"] | {"split_seed": 9}})
    with pytest.raises(CheckpointError, match=r"other: data.split_seed: got 9; expected 0"):
        evaluate_checkpoint((trained / "student", tmp_path / "other"))
    with pytest.raises(CheckpointError, match="gone: no such checkpoint"):
        evaluate_checkpoint((trained / "student", tmp_path / "gone"))


def test_a_members_state_holds_two_networks(tmp_path):
    settings = tiny_settings()
    worker = TrainingWorker(Task(settings, tmp_path, tuple(Role)))
    metrics = worker.train(Job(0, 0, None, 0, 4, 4, {role: Policy() for role in Role}))
    for role in Role:
        found = evaluate_checkpoint(tmp_path / "000-0000", role=role)
        assert found["validation_accuracy"] == pytest.approx(metrics[f"{role}/validation_accuracy"], abs=1e-6)
        assert found["validation_loss"] == pytest.approx(metrics[f"{role}/validation_loss"], abs=1e-5)
    assert metrics["teacher/validation_loss"] != metrics["student/validation_loss"]


def test_other_data_of_the_same_kind(trained):
    fewer = DataSettings(validation=30, split_seed=3)
    found = evaluate_checkpoint(trained / "student", fewer)
    held_out = open_training_data(fewer, train=None)
    part = held_out.image_set.subset(held_out.validation)
    right = answers(trained / "student", Role.STUDENT, part.images) == part.labels.numpy()
    assert found["validation_images"] == 30
    assert found["validation_accuracy"] == pytest.approx(right.mean(), abs=1e-6)


def image_folder(folder: Path, classes: int, mode: str) -> DataSettings:
    from PIL import Image

    for split in ("train", "test"):
        for k in range(classes):
            (folder / split / f"class{k:02d}").mkdir(parents=True)
            for i in range(2):
                Image.new(mode, (8, 8), color=k).save(folder / split / f"class{k:02d}" / f"{i}.png")
    return DataSettings(source="image_folder", path=folder, validation=classes)


@pytest.mark.parametrize(("classes", "mode", "got"), [(3, "RGB", "3 channels and 3"), (12, "L", "1 channels and 12")])
def test_images_it_was_not_trained_for(trained, tmp_path, classes, mode, got):
    data = image_folder(tmp_path, classes, mode)
    with pytest.raises(DataError, match=f"image_folder: got images of {got} classes; expected 1 and 10"):
        evaluate_checkpoint(trained / "student", data)


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        evaluate_checkpoint(tmp_path / "gone")
