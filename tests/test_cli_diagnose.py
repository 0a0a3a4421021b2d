"""`rolekd diagnose`: from folders, from a run, as a table and as JSON; what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, assert_refused, options, rolekd, tree, write_network, write_schedule

from rolekd_ray.config import load_settings
from rolekd_ray.roles import Role
from rolekd_ray.search.run_directory import create_run

torch.set_num_threads(1)

SETTINGS = options({key: value for key, value in TINY.items() if not key.startswith("search")})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def test_table_and_json_say_the_same_and_nothing_is_written():
    write_network(Path("teacher"))
    student = write_network(Path("net"), role=Role.STUDENT)
    words = ("diagnose", *SETTINGS, "--teacher", "teacher", "--agents", "cutmix", "--agents", "policy", "--schedule",
             write_schedule(Path("mine.yaml")), "--epochs", 2)  # fmt: skip
    before = tree(Path())
    chains = ("none", "cutmix", "policy")
    with_students = [word for chain in chains for word in ("--students", f"{chain}={student}")]
    shown, plain = rolekd(*words, *with_students), rolekd(*words, *with_students, "--json")
    assert shown.code == plain.code == 0, shown.err + plain.err
    assert tree(Path()) == before
    found = json.loads(plain.out)
    assert {row["agents"] for row in found["rows"]} == set(chains)
    assert (found["images"], found["epochs"], found["batch_size"]) == (60, 2, 3)
    assert found["teacher"].endswith("teacher")
    for row in found["rows"]:
        assert f"{1e3 * row['score']:.3g} ± " in shown.out and f"{row['test_loss']:.4f}" in shown.out
    assert found["correlation"] is None or "pearson" in shown.out  # the guard may refuse what fresh weights answer
    assert "Not a fitness" in shown.out and "students of cutmix" in shown.err


def test_a_run_brings_configuration_teacher_and_schedule():
    settings = load_settings("quickstart", [f"{key}={value}" for key, value in TINY.items()])
    run = create_run(Path("runs"), "a", settings, verb="run")
    write_network(run.teacher)
    write_schedule(run.schedule)
    words = ("--epochs", 2, "--json")
    found = rolekd("diagnose", "runs/a", *words)
    assert found.code == 0, found.err
    rows = {row["agents"]: row for row in json.loads(found.out)["rows"]}
    assert rows.keys() == {"none", "policy"} and rows["policy"]["ratio"]["value"] != 1
    again = rolekd("diagnose", "-c", "runs/a/config.yaml", "--teacher", run.teacher, "--schedule", run.schedule, *words)
    assert json.loads(again.out)["rows"] == json.loads(found.out)["rows"]
    smaller = rolekd("diagnose", "runs/a", "--set", "final.train=40", "--batch-size", 4, *words)
    assert json.loads(smaller.out)["images"] == 40 and json.loads(smaller.out)["batch_size"] == 4


def test_what_is_refused():
    write_network(Path("teacher"))
    given = (*SETTINGS, "--teacher", "teacher")
    assert_refused(lambda: rolekd("diagnose"), "--teacher: got none")
    assert_refused(lambda: rolekd("diagnose", *given), "'policy': got no schedule of the student")
    assert_refused(lambda: rolekd("diagnose", *given, "--agents", "cutmxi"), "unknown agent 'cutmxi'", "'cutmix'?")
    assert_refused(lambda: rolekd("diagnose", "runs/a", "-c", "quickstart"), "--config: got quickstart beside the run")
    assert_refused(lambda: rolekd("diagnose", "runs/a"), "runs/a: not a run directory")
    bad = ("--agents", "none", "--students", "none", "--students", "=net")
    assert_refused(lambda: rolekd("diagnose", *given, *bad), "--students: got 'none'", "--students: got '=net'")
    assert_refused(lambda: rolekd("diagnose", *given, "--agents", "none", "--students", "cutout=net"), "'cutout'")
    assert_refused(lambda: rolekd("diagnose", *given, "--agents", "none", "--batch-size", 7), "expected at most 6")
