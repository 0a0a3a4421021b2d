"""Noise and imbalance from the command line: through every verb that trains, told once, kept with what was made."""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, assert_refused, options, rolekd

from rolekd_ray import load_settings, start_run
from rolekd_ray.training.checkpoint import read_description

torch.set_num_threads(1)

NOISE, IMBALANCE = "{kind: symmetric, rate: 0.4, seed: 1}", "{kind: exponential, ratio: 4}"
SETTINGS = options(TINY | {"data.noise": NOISE, "data.imbalance": IMBALANCE})
TRAINING = options({key: value for key, value in TINY.items() if not key.startswith("search")})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def told(found: dict) -> list[str]:
    """The lines that stand for these numbers."""
    counts, noise = found["class_counts"], found["noise"]
    return [
        f"images: {found['images']}, {max(counts)} to {min(counts)} per class (exponential, ratio 4, first images)",
        f"labels: {100 * noise['wrong_share']:.1f} % of {found['images']} wrong (symmetric, rate 0.4, seed 1)",
    ]


def test_a_run_goes_through_and_says_what_it_trains_on():
    result = rolekd("run", "--local", "--name", "a", *SETTINGS)
    assert result.code == 0, result.err
    images = json.loads(Path("runs/a/environment.json").read_text())["images"]
    assert images["search"]["images"] == images["final"]["images"] == 60
    lines = result.err.splitlines()
    assert lines[:2] == told(images["search"]) and not any(line in lines[2:] for line in lines[:2]), "once"
    assert not any(line.startswith(("images:", "labels:")) for line in result.out.splitlines())
    for name in ("teacher", "student_alone", "student_plain", "student"):
        assert read_description(Path("runs/a/best") / name)["trained_on"] == images["final"]
    state = next(path for path in Path("runs/a/states").iterdir() if not path.name.startswith("."))
    assert read_description(state)["trained_on"] == images["search"]
    rows = json.loads(Path("runs/a/results.json").read_text())
    assert [row["validation_images"] for row in rows] == [60] * 4 and {row["test_images"] for row in rows} == {600}

    prolonged = rolekd("resume", "runs/a", "--local", "--epochs", 3)
    assert prolonged.code == 0, prolonged.err
    assert json.loads(Path("runs/a/environment.json").read_text())["images"] == images


def test_a_training_under_each_condition_gives_its_own_network():
    wanted = {
        "clean": {},
        "noisy": {"data.noise": NOISE},
        "imbalanced": {"data.imbalance": "{kind: power_law, gamma: 0.6, n_min: 4, images: random}"},
        "both": {"data.noise": NOISE, "data.imbalance": IMBALANCE, "final.train": "null"},
    }
    descriptions, errors = {}, {}
    for name, given in wanted.items():
        result = rolekd("train", "student", "-o", name, *TRAINING, *options(given), "--epochs", 1)
        assert result.code == 0, result.err
        descriptions[name], errors[name] = read_description(Path(name)), result.err
    seen = {name: found["trained_on"] for name, found in descriptions.items()}
    assert not errors["clean"].count("labels:") and not errors["clean"].count("images:")
    assert seen["clean"].keys() == {"images", "class_counts"} and seen["clean"]["images"] == 60
    assert "labels: " in errors["noisy"] and "images: " not in errors["noisy"]
    assert "(power_law, gamma 0.6, random images)" in errors["imbalanced"]
    assert errors["both"].splitlines()[:2] == told(seen["both"])
    assert seen["both"]["images"] == sum(seen["both"]["class_counts"]) > 60
    assert seen["both"]["class_counts"][0] >= 4 * seen["both"]["class_counts"][-1]
    losses = {found["metrics"]["validation_loss"] for found in descriptions.values()}
    assert len(losses) == 4, "each condition makes another network"

    changed = ("train", "student", "-o", "noisy", *TRAINING, *options({"data.noise": "{kind: symmetric, rate: 0.5}"}))
    assert_refused(lambda: rolekd(*changed, "--epochs", 1), "noisy: exists and is not this training")
    taught = rolekd("train", "student", "-o", "net", *TRAINING, "--epochs", 1, "--teacher", "both")
    assert taught.code == 0, "a teacher from under other conditions may teach: it was held out the same images"
    found = rolekd("evaluate", "both")
    assert found.code == 0 and f"{descriptions['both']['metrics']['validation_accuracy']:.4f}" in found.out


def test_the_call_says_the_same_on_its_console():
    from io import StringIO

    from rich.console import Console

    settings = load_settings("quickstart", [word for word in SETTINGS if word != "--set"])
    text = StringIO()
    start_run(settings, storage="runs", name="a", verb="search", local=True, console=Console(file=text, width=60))
    images = json.loads(Path("runs/a/environment.json").read_text())["images"]
    assert text.getvalue().splitlines()[:2] == told(images["search"])


def test_check_prints_them():
    found = rolekd("check", "quickstart", *SETTINGS)
    assert found.code == 0
    assert "  noise: {kind: symmetric, rate: 0.4, seed: 1}" in found.out
    assert "  imbalance: {kind: exponential, n_max: null, images: first, seed: 0, ratio: 4.0}" in found.out
    assert "noise: null, imbalance: null" in " ".join(rolekd("check", "quickstart").out.split())


@pytest.mark.parametrize(
    "words, problem",
    [
        (["data.noise={kind: symmetric, rate: 1.5}"], "data.noise.rate: got 1.5; expected less than or equal to 1"),
        (["data.imbalance={kind: exponential, ratio: 1000}"], "class '9' would be empty, got 0 images"),
        (
            ["data.imbalance={kind: exponential, ratio: 2, n_max: 500}"],
            "class '0' has too few images, got 113 that are not held out; expected at least 500",
        ),
        (["data.imbalance={kind: power_law, gamma: 1, n_min: 400}"], "data.imbalance.n_min: got 400; expected at most"),
        (
            ["data.imbalance={kind: exponential, ratio: 10}", "final.train=900"],
            "data.train or final.train: got 900; expected at most",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["search --local", "train student -o net"])
def test_what_cannot_be_is_refused_before_anything_is_written(verb, words, problem):
    given = [part for word in words for part in ("--set", word)]
    assert_refused(lambda: rolekd(*verb.split(), *options(TINY), *given), problem)
