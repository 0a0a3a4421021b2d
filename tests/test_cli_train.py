"""`rolekd train`: a schedule replayed on more images, another network, another length."""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, assert_refused, options, rolekd, tree, write_network, write_schedule

from rolekd_ray.training.checkpoint import load_checkpoint, read_description

torch.set_num_threads(1)

SETTINGS = options({key: value for key, value in TINY.items() if not key.startswith("search")})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def trained(output: str, *words: object) -> dict:
    """Train; return what the checkpoint says about itself."""
    result = rolekd("train", *words[:1], "-o", output, *SETTINGS, *words[1:])
    assert result.code == 0, result.err
    description = read_description(Path(output))
    assert f"validation accuracy {description['metrics']['validation_accuracy']:.4f}" in result.out
    assert result.out.rstrip().endswith(output)
    assert not Path(f"{output}.partial").exists()
    return description


def weights(folder: str) -> dict:
    return load_checkpoint(Path(folder))[0]["networks"]


def equal(one: dict, other: dict) -> bool:
    (one,), (other,) = one.values(), other.values()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_both_roles_with_schedule_teacher_other_length_and_network():
    schedule = write_schedule(Path("mine.yaml"))
    teacher = trained("teacher", "teacher", "--schedule", schedule, "--epochs", 3)
    assert teacher["models"] == {"teacher": "resnet8"} and teacher["plan"]["epochs"] == 3
    words = ("student", "--schedule", schedule, "--teacher", "teacher", "--epochs", 5, "--model", "wrn_10_2")
    student = trained("student", *words)
    assert student["models"] == {"student": "wrn_10_2"} and student["plan"]["epochs"] == 5
    assert student["teacher"] == str(Path("teacher").absolute())
    found = rolekd("evaluate student")
    assert found.code == 0 and "agreement with teacher" in found.out
    accuracy = next(line.split() for line in found.out.splitlines() if line.startswith("accuracy"))
    assert accuracy[1] == f"{student['metrics']['validation_accuracy']:.4f}"


def test_evolved_weights_of_losses_that_the_settings_lack_are_said():
    scalar = {"initial": 1, "range": [0.1, 10], "log": True, "role": "student"}
    space = {"name": "mine", "ops": {"invert": {}}, "scalars": {"losses.hinton": scalar, "temperature": scalar}}
    segment = {"epochs": 1, "policy": [], "losses.hinton": 2.0, "temperature": 3.0}
    schedule = {"format": "rolekd.schedule/1", "space": space, "roles": {"student": {"segments": [segment]}}}
    Path("mine.json").write_text(json.dumps(schedule))
    teacher = write_network(Path("teacher"), "resnet8")
    words = ("train", "student", *SETTINGS, "--epochs", 1, "--schedule", "mine.json", "--teacher", teacher)
    used = rolekd(*words, "-o", "a", "--set", "distill.losses={hinton: 1}")
    unused = rolekd(*words, "-o", "b", "--set", "distill.losses={cross_entropy: 1, pkt: 1}")
    assert used.code == unused.code == 0, (used.err, unused.err)
    assert "note: losses.hinton of the schedule change nothing, for distill.losses has no such loss" in unused.err
    assert "note:" not in used.err


def test_robustness_as_tables_and_as_json():
    trained("teacher", "teacher", "--epochs", 1)
    trained("student", "student", "--teacher", "teacher", "--epochs", 1)
    words = ("evaluate", "student", "--robustness", "--images", 5, "--layers", "stage1, stage2:stage3")
    shown, plain = rolekd(*words), rolekd(*words, "--json")
    assert shown.code == plain.code == 0, shown.err + plain.err
    found = json.loads(plain.out)
    assert found["robust_images"] == 5 and "decision boundaries" in plain.err
    assert [(pair["student"], pair["teacher"]) for pair in found["cka"]] == [("stage1", "stage1"), ("stage2", "stage3")]
    for value in (found["pgd_accuracy"], found["corruption_accuracy"], found["cka"][1]["cka"]):
        assert f"{value:.4f}" in shown.out
    assert "5 images" in shown.out and "boundaries: MagSim" in shown.out
    for option, said in (("--layers stage9", "unknown layer 'stage9'"), ("--corruptions gone", "3 channels")):
        refused = rolekd(f"evaluate student {option}")
        assert (refused.code, refused.out) == (2, "") and said in refused.err.splitlines()[-1]


def test_what_is_replayed_makes_the_network():
    """Schedule, its variants, teacher and seed each change the weights; the clock does not."""
    schedule, net = write_schedule(Path("mine.yaml")), write_network(Path("net"))
    arms = {
        "plain": ("--seed", 0),
        "again": (),
        "seed": ("--seed", 1),
        "teacher": ("--teacher", net),
        "ordered": ("--schedule", schedule),
        "flattened": ("--schedule", schedule, "--variant", "flattened"),
        "last": ("--schedule", schedule, "--variant", "last"),
    }
    for name, words in arms.items():
        trained(name, "student", "--epochs", 2, *words)
    assert equal(weights("plain"), weights("again"))
    different = [name for name in arms if name != "again"]
    assert not [
        (one, other)
        for i, one in enumerate(different)
        for other in different[:i]
        if equal(weights(one), weights(other))
    ]


def test_the_same_again_trains_nothing_and_something_else_is_refused():
    trained("net", "student", "--epochs", 1)
    before = tree(Path())
    words = ("train", "student", "-o", "net", *SETTINGS, "--epochs")
    first = json.loads(Path("net/checkpoint.json").read_text())["description"]["metrics"]
    again = rolekd(*words, 1)
    assert again.code == 0 and f"{first['seconds']:.1f} s" in again.out
    assert tree(Path()) == before
    for other in ((2,), (1, "--seed", 5), (1, "--model", "resnet14")):
        assert_refused(lambda: rolekd(*words, *other), "net: exists", "expected a new folder")  # noqa: B023
