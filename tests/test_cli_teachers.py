"""`rolekd train student` with other teachers than one checkpoint: ensembles, assistants, generations, a residual."""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, assert_refused, options, rolekd, tree, write_images, write_network, write_schedule

from rolekd_ray.search import evaluation
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.training.checkpoint import load_checkpoint, read_description

torch.set_num_threads(1)

SETTINGS = options({key: value for key, value in TINY.items() if not key.startswith("search")})
STUDENT = ("train", "student", "-o", "net", *SETTINGS, "--epochs", 1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """A current folder with two teachers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    write_network(Path("a"), "resnet8")
    write_network(Path("b"), "wrn_10_1")
    return tmp_path


def said(*words: object) -> list[str]:
    """Train; return the folders of the checkpoints that the output names, in order."""
    result = rolekd(*STUDENT, *words)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    for line in lines:
        accuracy = read_description(Path(line.split("; ")[1]))["metrics"]["validation_accuracy"]
        assert line.startswith(f"validation accuracy {accuracy:.4f}")
    return [line.split("; ")[1] for line in lines]


def test_an_ensemble_teaches_and_is_what_agreement_is_measured_with():
    assert said("--teacher", "a", "--teacher", "b") == ["net"]
    about = read_description(Path("net"))
    assert about["teacher"] == [str(Path(name).absolute()) for name in "ab"] and about["combine"] == "probabilities"
    named = rolekd("evaluate net")
    given = rolekd("evaluate net --teacher a --teacher b")
    assert named.code == given.code == 0 and "agreement with teacher" in named.out and named.out == given.out
    by_logits = rolekd(*STUDENT[:3], "other", *STUDENT[4:], "--teacher", "a", "--teacher", "b", "--combine", "logits")
    assert by_logits.code == 0 and read_description(Path("other"))["combine"] == "logits"
    trees = [load_checkpoint(Path(name))[0]["networks"]["student"]["conv1.weight"] for name in ("net", "other")]
    assert not torch.equal(*trees)


def test_losses_that_wait_for_a_teacher_in_vain_are_said():
    words = "learns from labels alone, whatever distill.losses says"
    plain, generations, *others = (
        rolekd(*STUDENT[:3], f"net{number}", *STUDENT[4:], *given).err
        for number, given in enumerate(
            (
                (),
                ("--generations", 2),
                ("--teacher", "a"),
                ("--set", "teacher.checkpoint=a"),
                ("--set", "distill.losses={cross_entropy: 1}"),
                ("--set", "distill.losses={cross_entropy: 1, mutual: 1}"),
            )
        )
    )
    assert f"note: no --teacher, so the student {words}" in plain
    assert f"the first generation {words}" in generations
    assert not any(words in err for err in others)


def test_the_configurations_teacher_teaches_unless_another_is_given():
    weights = []
    for number, given in enumerate((("--teacher", "a"), ("--set", "teacher.checkpoint=a"))):
        assert rolekd(*STUDENT[:3], f"by{number}", *STUDENT[4:], *given).code == 0
        weights.append(load_checkpoint(Path(f"by{number}"))[0]["networks"]["student"]["conv1.weight"])
    assert torch.equal(*weights)
    words = ("--set", "teacher.checkpoint=a", "--teacher", "b")
    assert rolekd(*STUDENT[:3], "by2", *STUDENT[4:], *words).code == 0
    assert Path(load_checkpoint(Path("by2"))[1]["teacher"]).name == "b"


def test_a_loss_compares_layers_of_an_ensembles_members_by_name():
    words = ("--teacher", "a", "--teacher", "b", "--set", "distill.losses={attention: 1}")
    assert_refused(lambda: rolekd(*STUDENT, *words), "distill.layers.attention", "Ensemble has no defaults")
    layers = "distill.layers={attention: {student: [stage2, stage3], teacher: [members.0.stage2, members.1.stage3]}}"
    assert said(*words, "--set", layers) == ["net"]
    assert_refused(
        lambda: rolekd(*STUDENT, *words, "--set", layers.replace("1.stage3", "2.stage3")), "members.2.stage3"
    )


def test_ensembles_are_evaluated_and_compared_with(monkeypatch):
    asked = []
    real = evaluation.evaluate_checkpoint

    def spy(folder, **options):
        asked.append((folder, options["teacher"], options["combine"]))
        return real(folder, **options)

    monkeypatch.setattr(evaluation, "evaluate_checkpoint", spy)
    found = rolekd("evaluate a b --teacher b --teacher a --combine logits")
    assert found.code == 0 and found.out.startswith("a + b\n") and "agreement with teacher" in found.out
    assert rolekd("evaluate a").code == 0
    a, b = Path("a"), Path("b")
    assert asked == [((a, b), (b, a), "logits"), ((a,), None, "probabilities")]


def test_assistants_and_generations_end_in_the_output_and_the_same_again_trains_nothing():
    words = (
        "--teacher",
        "a",
        "--assistant",
        "resnet14",
        "--generations",
        2,
        "--schedule",
        write_schedule(Path("s.yaml")),
    )
    links = ["net.chain/1-resnet14", "net.chain/2-resnet8", "net"]
    assert said(*words) == links
    assert [read_description(Path(name))["models"]["student"] for name in links] == ["resnet14", "resnet8", "resnet8"]
    taught = [Path(read_description(Path(name))["teacher"]) for name in links]
    assert taught == [Path(name).absolute() for name in ("a", *links[:-1])]
    before = tree(Path())
    assert said(*words) == links and tree(Path()) == before
    assert rolekd("evaluate", *links[1:]).code == 0, "an ensemble of generations"
    assert_refused(lambda: rolekd(*STUDENT, *words, "--seed", 5), *(f"{name}: exists" for name in links))
    assert_refused(lambda: rolekd(*STUDENT, "--teacher", "a"), "net: exists", "expected a new folder")


def test_generations_without_a_teacher_begin_with_labels():
    assert said("--generations", 2) == ["net.chain/1-resnet8", "net"]
    assert read_description(Path("net.chain/1-resnet8"))["teacher"] is None


def test_a_residual_assistant_is_part_of_the_output_and_can_teach():
    assert said("--teacher", "a", "--residual", "wrn_10_1") == ["net.chain/1-resnet8", "net"]
    assert read_description(Path("net"))["models"] == {"student": "resnet8+wrn_10_1"}
    found = rolekd("evaluate net")
    assert found.code == 0 and "agreement with teacher" in found.out
    pupil = rolekd("train", "student", "-o", "pupil", *SETTINGS, "--epochs", 1, "--teacher", "net", "--teacher", "b")
    assert pupil.code == 0, pupil.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--assistant resnet14", ("assistants: got resnet14 without a teacher", "--teacher")),
        ("--residual resnet14", ("residual: got resnet14 without a teacher", "--teacher")),
        ("--combine logits", ("--combine: got 'logits'", "expected several")),
        ("--teacher a --combine logits", ("--combine: got 'logits'", "expected several")),
        ("--teacher a --teacher b --combine median", ("median", "probabilities", "logits")),
        ("--generations 0", ("generations: got 0; expected at least 1",)),
        ("--generations -2", ("generations: got -2; expected at least 1",)),
        ("--teacher a --teacher gone --teacher away", ("gone: no such checkpoint", "away: no such checkpoint")),
        ("--teacher a --assistant resnet9 --residual resnet15", ("'resnet9'", "'resnet15'", "Did you mean")),
        ("--teacher a --assistant alexnet", ("network 'alexnet'", "8x8")),
        ("--teacher a --residual wrn_11_1", ("wrn_11_1", "depth 10, 16")),
    ],
)
def test_refused_with_the_reason_before_anything_is_written(words, parts):
    assert_refused(lambda: rolekd(*STUDENT, *words.split()), *parts)


def test_a_member_for_other_classes_or_channels_is_named():
    write_network(Path("photos"), data=write_images(Path("data")))
    words = "--teacher a --teacher photos"
    assert_refused(lambda: rolekd(*STUDENT, *words.split()), "photos: of another architecture: classes: got 4")
    assert_refused(lambda: rolekd("evaluate a photos"), "photos: of another architecture: classes: got 4")


def test_nothing_of_it_is_for_teachers():
    words = "train teacher -o out --teacher a --assistant resnet8 --generations 2 --residual resnet8"
    named = ("--teacher, --assistant, --generations, --residual", "learns from labels alone")
    assert_refused(lambda: rolekd(words), *named)


def test_a_whole_run_with_an_ensemble_as_the_given_teacher():
    settings = options(TINY | {"teacher.checkpoint": "[a, b]", "teacher.combine": "logits"})
    result = rolekd("run", "--local", "--name", "r", *settings)
    assert result.code == 0, result.err
    rows = json.loads(Path("runs/r/results.json").read_text())
    assert rows[0]["network"] == "teacher" and rows[0]["checkpoint"] == "../../a, ../../b"
    expected = evaluate_checkpoint((Path("a"), Path("b")), combine="logits")
    assert {key: rows[0][key] for key in expected} == expected
    assert "test_teacher_agreement" in rows[-1]
    states = list(Path("runs/r/states").iterdir())
    assert states and all("student/hinton" in read_description(state)["metrics"] for state in states)
    about = read_description(Path("runs/r/best/student"))
    assert about["teacher"] == [str(Path(name).absolute()) for name in "ab"] and about["combine"] == "logits"
    assert not Path("runs/r/best/teacher").exists() and not Path("runs/r/teacher").exists()
