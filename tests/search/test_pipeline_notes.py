"""What a finished run says to a person: whether distillation did harm."""

from types import SimpleNamespace

import pytest
from cli_helpers import TINY, options, rolekd, write_network

from rolekd_ray.cli import runs
from rolekd_ray.policy.policy import Policy
from rolekd_ray.policy.schedule import Schedule, Segment
from rolekd_ray.policy.space import load_space
from rolekd_ray.roles import Role
from rolekd_ray.search.pipeline import Outcome, Pipeline, notes_on


def rows(alone: float, plain: float, found: float) -> list[dict]:
    names = ("teacher", "student alone", "student distilled, no augmentation", "student distilled, found schedule")
    return [
        {"network": name, "validation_accuracy": accuracy, "test_accuracy": 0.5, "test_loss": 1.0}
        for name, accuracy in zip(names, (0.99, alone, plain, found), strict=True)
    ]


def test_harm_is_said_with_both_numbers():
    (note,) = notes_on(rows(0.9417, 0.95, 0.92))
    assert note.startswith("distillation ended below the student alone (0.9200 against 0.9417 validation accuracy): ")
    assert "without augmentation it did not (0.9500), so the found schedule did harm" in note


@pytest.mark.parametrize("plain", [0.93, 0.9417])
def test_harm_is_put_down_to_the_losses_only_where_no_schedule_was_in_it(plain):
    (note,) = notes_on(rows(0.9417, plain, 0.92))
    assert ("other losses, weights or temperatures" in note) == (plain < 0.9417)
    assert ("the found schedule did harm" in note) == (plain >= 0.9417)


@pytest.mark.parametrize("found", [rows(0.92, 0.91, 0.92), rows(0.92, 0.9, 0.93), []])
def test_no_harm_is_not_worth_a_note(found):
    assert notes_on(found) == []


@pytest.mark.parametrize(("found", "said"), [(0.91, True), (0.93, False)])
def test_the_command_line_says_it_on_stderr(tmp_path, monkeypatch, capsys, found, said):
    schedule = Schedule(load_space("quickstart"), {Role.STUDENT: (Segment(2, Policy()),)})
    outcome = Outcome(schedule, tmp_path / "state", rows=rows(0.92, 0.92, found))
    directory = SimpleNamespace(path=tmp_path, schedule=tmp_path / "best" / "a", results=tmp_path / "results.json")
    monkeypatch.setattr(Pipeline, "__init__", lambda self, *a, **k: None)
    monkeypatch.setattr(Pipeline, "execute", lambda self, *a, **k: outcome)
    runs._execute(directory, "run", True)
    printed = capsys.readouterr()
    note = f"note: distillation ended below the student alone ({found:.4f} against 0.9200 validation accuracy)"
    assert (note in printed.err) == said and "ended below" not in printed.out
    assert "student distilled, found schedule" in printed.out


@pytest.mark.slow
def test_a_real_run_with_an_untrained_teacher_did_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_network(tmp_path / "teacher")  # fresh weights: whoever follows it learns nothing
    words = options(TINY | {"teacher.checkpoint": "teacher", "distill.losses": "{hinton: 1}", "final.epochs": 8})
    done = rolekd("run", "--local", "--name", "a", *words)
    assert done.code == 0, done.err
    assert "note: distillation ended below the student alone (0." in done.err
