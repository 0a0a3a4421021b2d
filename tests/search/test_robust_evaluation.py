"""What `evaluate` measures beyond clean images: the numbers of its parts, on the images it says, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rolekd_ray.augment.corruptions import STRENGTHS
from rolekd_ray.config import load_settings
from rolekd_ray.data.images import ImageSet
from rolekd_ray.errors import ConfigError, DataError
from rolekd_ray.models.zoo import build_network
from rolekd_ray.roles import Role
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.search.robust_evaluation import RobustEvaluation, stage_pairs
from rolekd_ray.training.boundaries import boundary_similarity
from rolekd_ray.training.checkpoint import load_checkpoint
from rolekd_ray.training.data import open_images
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network
from rolekd_ray.training.robustness import OnPixels, robust_accuracy, transferability

SETTINGS = load_settings(
    "quickstart",
    ["data.train=300", "data.validation=50", "final.train=300", "final.epochs=4", "teacher.model=resnet8",
     "training.batch_size=20", "training.precision=float32"],
)  # fmt: skip
FEW = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robust")
    train_final(FinalTraining(SETTINGS, Role.TEACHER, folder / "teacher"))
    train_final(FinalTraining(SETTINGS, Role.STUDENT, folder / "student", teacher=folder / "teacher"))
    return folder


@pytest.fixture(scope="module")
def measured(trained) -> tuple[dict, list[str]]:
    told: list[str] = []
    return evaluate_checkpoint(trained / "student", robustness=True, images=FEW, tell=told.append), told


def on_pixels(folder: Path) -> OnPixels:
    network, about = load_network(folder, Role.STUDENT)
    return OnPixels(network, torch.tensor(about["mean"]), torch.tensor(about["std"]))


def test_every_number_is_that_of_its_part(trained, measured):
    found, told = measured
    test = open_images(SETTINGS.data, "test")
    images, labels = test.images[:FEW], test.labels[:FEW]
    student, teacher = on_pixels(trained / "student"), on_pixels(trained / "teacher")
    assert found["robust_images"] == FEW
    assert found["pgd_accuracy"] == robust_accuracy(student, images, labels, seed=0)
    assert found["teacher_pgd_accuracy"] == robust_accuracy(teacher, images, labels, seed=0)
    transfer = transferability(teacher, student, images, labels, seed=0)
    assert (found["transferability"], found["transfer_attacks"]) == (transfer.share, transfer.attacks)
    boundaries = boundary_similarity(teacher, student, images, labels)
    assert found["boundary_pairs"] == boundaries.pairs > 0
    assert found["boundary_magnitude"] == pytest.approx(boundaries.magnitude)
    assert found["boundary_angle"] == pytest.approx(boundaries.angle)
    assert list(found["corruptions"]) == list(STRENGTHS)
    values = [value for row in found["corruptions"].values() for value in row]
    assert found["corruption_accuracy"] == pytest.approx(sum(values) / 35)
    assert [(pair["student"], pair["teacher"]) for pair in found["cka"]] == [(f"stage{n}",) * 2 for n in (1, 2, 3)]
    assert all(0 < pair["cka"] < 1 for pair in found["cka"])
    assert json.loads(json.dumps(found)) == found
    assert len(told) == len(set(told)) > 4


def test_the_clean_numbers_are_the_same_and_nothing_is_measured_unasked(trained, measured):
    plain = evaluate_checkpoint(trained / "student")
    assert {name: measured[0][name] for name in plain} == plain
    assert plain["class_names"] == [str(k) for k in range(10)]
    assert {"validation_teacher_agreement", "test_top5_accuracy", "test_entropy", "test_class_accuracy"} <= plain.keys()
    added = measured[0].keys() - plain.keys()
    assert {"robust_images", "cka", "corruptions", "pgd_accuracy", "boundary_angle", "transferability"} <= added


def test_without_a_teacher_there_is_nothing_to_compare_with(trained):
    found = evaluate_checkpoint(trained / "teacher", robustness=True, images=FEW)
    assert {"pgd_accuracy", "corruptions"} <= found.keys()
    assert not any(word in name for name in found for word in ("teacher", "cka", "transfer", "boundary"))


def test_layers_alone(trained):
    pairs = [("stage1", "stage3"), ("classifier.input", "classifier.input")]
    found = evaluate_checkpoint(trained / "student", layers=pairs, images=FEW)
    assert [(pair["student"], pair["teacher"]) for pair in found["cka"]] == pairs
    assert "pgd_accuracy" not in found and "corruptions" not in found
    with pytest.raises(ConfigError, match="unknown layer 'stage7'"):
        evaluate_checkpoint(trained / "student", layers=[("stage7", "stage1")], images=FEW)
    with pytest.raises(ConfigError, match="layers: got no teacher"):
        evaluate_checkpoint(trained / "teacher", layers=pairs, images=FEW)


def published(folder: Path, size: int, channels: int) -> Path:
    rows = np.zeros((20, size, size, channels), np.uint8)
    np.save(folder / "fog.npy", rows)
    np.save(folder / "labels.npy", np.tile(np.arange(4), 5))
    return folder


def test_a_folder_of_corruptions_is_used_instead_of_the_built_in_ones(tmp_path):
    """All black, so the network names one class, and one of four labels is right."""
    network = build_network("resnet8", num_classes=10, channels=3, seed=0).eval()
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    test = ImageSet("made", images, torch.zeros(6, dtype=torch.int64), tuple("abcdefghij"))
    from rolekd_ray.search.evaluation import _clean_views

    views = _clean_views({"mean": [0.5] * 3, "std": [0.2] * 3})
    with torch.no_grad():
        answer = int(network(views.clean(images))[0].argmax())
    robust = RobustEvaluation(network, None, test, views, 100, lambda text: None)
    for everything in (False, True):
        found = robust.metrics(everything=everything, corruptions=published(tmp_path, 8, 3), layers=None)
        assert found["corruptions"] == {"fog": [0.25 if answer < 4 else 0.0] * 5}
        assert ("pgd_accuracy" in found) == everything
    assert found["robust_images"] == 6
    with pytest.raises(DataError, match=r"fog.npy: got \(20, 9, 9, 3\) uint8; expected \(20, 8, 8, 3\)"):
        robust.metrics(everything=True, corruptions=published(tmp_path, 9, 3), layers=None)


def test_a_folder_of_other_images_is_refused_before_anything_is_measured(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("rolekd_ray.search.robust_evaluation.layer_similarity", pytest.fail)
    folder = published(tmp_path, 8, 3)
    with pytest.raises(DataError, match=f"{folder}: corrupted images have 3 channels; expected 1"):
        evaluate_checkpoint(trained / "student", robustness=True, corruptions=folder, images=FEW)


def test_stages_are_paired_from_the_deep_end():
    def network(name):
        return build_network(name, num_classes=10, channels=3, seed=0)

    deep = stage_pairs(network("resnet8"), network("cifar_resnet10"))
    assert deep[-1] == ("stage3", "stage4") and len(deep) == 3
    assert [theirs for _, theirs in deep] == ["stage2", "stage3", "stage4"]
    assert stage_pairs(network("resnet8"), network("squeezenet1_1")) == []


def test_nothing_of_the_checkpoints_is_changed(trained, measured):
    for name in ("student", "teacher"):
        tree, about = load_checkpoint(trained / name)
        assert about["metrics"]["validation_accuracy"] > 0.3 and tree["networks"]
