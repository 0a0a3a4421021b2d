"""Teachers of several checkpoints: loading them, and students that learn from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_helpers import same_tree, tiny_settings

from rolekd_ray.errors import CheckpointError
from rolekd_ray.models.ensemble import Ensemble
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import load_checkpoint, read_description
from rolekd_ray.training.data import open_training_data
from rolekd_ray.training.final import FinalTraining, train_final
from rolekd_ray.training.networks import load_network, load_teacher

USUAL = ("final.train=60", "final.epochs=2", "training.precision=float32", "distill.losses={hinton: 1}")
SETTINGS = tiny_settings(*USUAL)
SIZES = {"num_classes": 10, "channels": 1}
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> tuple[Path, Path]:
    """Two of different architectures that answer differently."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, change in (("a", "teacher.model=resnet8"), ("b", "teacher.model=wrn_10_1")):
        changed = tiny_settings(*USUAL, change, "final.epochs=6", "final.train=200")
        train_final(FinalTraining(changed, Role.TEACHER, folder / name))
    return folder / "a", folder / "b"


def student(folder: Path, *teachers: Path, settings=SETTINGS) -> Path:
    train_final(FinalTraining(settings, Role.STUDENT, folder, teacher=teachers if len(teachers) > 1 else teachers[0]))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0]["networks"]["student"]


def test_several_checkpoints_answer_as_their_mean(teachers):
    with torch.no_grad():
        alone = [load_network(folder, Role.TEACHER)[0](IMAGES) for folder in teachers]
        found = {combine: load_teacher(teachers, combine=combine, **SIZES) for combine in ("probabilities", "logits")}
        answers = {combine: network(IMAGES) for combine, network in found.items()}
    assert torch.allclose(answers["logits"], (alone[0] + alone[1]) / 2, atol=1e-6)
    mean = (alone[0].softmax(1) + alone[1].softmax(1)) / 2
    assert torch.allclose(answers["probabilities"].softmax(1), mean, atol=1e-6)
    assert all(isinstance(network, Ensemble) for network in found.values())
    assert not any(module.training for network in found.values() for module in network.modules())


def test_one_checkpoint_is_its_network_and_alone_is_held_to_the_model(teachers):
    first, second = teachers
    for where in (first, (first,)):
        network = load_teacher(where, model="resnet8", combine="logits", **SIZES)
        assert not isinstance(network, Ensemble)
        with pytest.raises(CheckpointError, match="model: got 'resnet8'; expected 'resnet14'"):
            load_teacher(where, model="resnet14", **SIZES)
    assert isinstance(load_teacher((first, second), model="resnet14", **SIZES), Ensemble)


def test_all_that_is_wrong_with_several_is_said_at_once(teachers, tmp_path):
    with pytest.raises(CheckpointError) as error:
        load_teacher((*teachers, tmp_path / "gone"), num_classes=100, channels=3)
    said = error.value.problems
    assert len(said) == 3 and "gone: no such checkpoint" in said[2]
    assert all(f"{folder}: of another architecture: classes" in line for folder, line in zip(teachers, said))


def test_a_student_learns_from_the_mean(teachers, tmp_path):
    """From twice the same as from that one alone; from two, and by either mean, something else."""
    first, second = teachers
    logits = SETTINGS.model_copy(update={"teacher": SETTINGS.teacher.model_copy(update={"combine": "logits"})})
    found = {
        "alone": weights(student(tmp_path / "alone", first)),
        "twice": weights(student(tmp_path / "twice", first, first)),
        "both": weights(student(tmp_path / "both", first, second)),
        "logits": weights(student(tmp_path / "logits", first, second, settings=logits)),
    }
    layer = {name: tree["conv1.weight"] for name, tree in found.items()}
    assert torch.allclose(layer["alone"], layer["twice"], atol=1e-4)
    gaps = [(layer[a] - layer[b]).abs().max() for a, b in (("alone", "both"), ("both", "logits"), ("alone", "logits"))]
    assert min(gaps) > 1e-3, gaps


def test_the_checkpoint_says_who_taught(teachers, tmp_path):
    about = read_description(student(tmp_path / "s", *teachers))
    assert about["teacher"] == [str(folder) for folder in teachers] and about["combine"] == "probabilities"
    assert about["plan"]["teacher"] == [read_description(folder)["plan"] for folder in teachers]
    alone = read_description(student(tmp_path / "alone", teachers[0]))
    assert alone["teacher"] == str(teachers[0]) and "combine" not in alone
    assert alone["plan"]["teacher"] == read_description(teachers[0])["plan"]


def test_other_teachers_are_another_training(teachers, tmp_path):
    first, second = teachers
    folder = student(tmp_path / "s", first, second)
    same = FinalTraining(SETTINGS, Role.STUDENT, folder, teacher=(first, second))
    assert same.finished(same.plan())
    logits = SETTINGS.model_copy(update={"teacher": SETTINGS.teacher.model_copy(update={"combine": "logits"})})
    for other in (
        replace(same, teacher=first),
        replace(same, teacher=(second, first, first)),
        replace(same, settings=logits),
    ):
        assert not other.finished(other.plan())
    one = replace(same, folder=student(tmp_path / "one", first), teacher=(first,))
    assert one.finished(one.plan()), "one in a list is one"


def distance(folder: Path, teachers: tuple[Path, ...], temperature: float = 4.0) -> float:
    """Mean KL divergence of a student from the teachers' mean probabilities, softened; image by image in float64."""
    data = open_training_data(SETTINGS.data, train=None)
    mean, std = (value[:, None, None] for value in data.statistics)
    images = (data.image_set.images[data.validation] / 255 - mean) / std
    with torch.no_grad():
        each = [load_network(teacher, Role.TEACHER)[0](images).double().numpy() for teacher in teachers]
        own = load_network(folder, Role.STUDENT)[0](images).double().numpy()
    total = 0.0
    for row in range(len(images)):
        powers = [np.exp(logits[row] - logits[row].max()) for logits in each]
        target = (sum(power / power.sum() for power in powers) / len(each)) ** (1 / temperature)
        target /= target.sum()
        found = np.exp((own[row] - own[row].max()) / temperature)
        total += float((target * np.log(target / (found / found.sum()))).sum())
    return total / len(images)


def test_learning_from_an_ensemble_brings_the_student_closer_to_it(teachers, tmp_path):
    """Real digits, Hinton's loss alone."""
    found = []
    for epochs in (1, 8):
        changed = tiny_settings(*USUAL, "final.train=120", f"final.epochs={epochs}", "training.learning_rate=0.05")
        found.append(distance(student(tmp_path / str(epochs), *teachers, settings=changed), teachers))
    assert found[1] < 0.6 * found[0], found
    assert not same_tree(weights(tmp_path / "1"), weights(tmp_path / "8"))
