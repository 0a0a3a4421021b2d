"""The table of a diagnosis, and what must be read with it."""

import re

import pytest
from rich.console import Console

from rolekd_ray.reporting.diagnosis_table import diagnosis_notes, diagnosis_table


def made_row(agents: str, score: float, **other) -> dict:
    interval = {"value": score, "low": score - 1e-4, "high": score + 1e-4}
    ratio = {"value": score / 5e-3, "low": score / 5e-3 - 0.02, "high": score / 5e-3 + 0.02}
    plain = {"score": score, "interval": interval, "ratio": ratio, "entropy": 0.25, "kept": 0.5, "passes_guard": True}
    level = {"one_hot_level": 5.56e-3, "classes": 100, "groups": 1564, "rows_per_group": 640}
    return {"agents": agents, "students": 0, "test_loss": None, **plain, **level, **other}


def made_diagnosis(*rows: dict, correlation: dict | None = None) -> dict:
    return {"rows": list(rows), "images": 50000, "epochs": 10, "batch_size": 64, "correlation": correlation}


def printed(found: dict) -> list[str]:
    console = Console(width=80, record=True, file=None)
    with console.capture() as capture:
        console.print(diagnosis_table(found))
    return capture.get().splitlines()


ROWS = (
    made_row("cutout", 2.78e-3, passes_guard=False, kept=0.01),
    made_row("policy+cutmix+pick", 4.15e-3, test_loss=0.9746, students=3),
    made_row("none", 5e-3),
)


def test_every_chain_has_a_line_that_fits():
    lines = printed(made_diagnosis(*ROWS))
    assert lines[0] == "Teacher's answers to agents' views: 50000 images x 10 epochs, batches of 64"
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"cutout +2\.78 ± 0\.1 +0\.556 ± 0\.020 +0\.250 +0\.010 +no", line) for line in lines)
    assert any(re.search(r"4\.15 ± 0\.1 .* yes +0\.9746", line) for line in lines)
    assert any(re.match(r"none .* yes +–", line) for line in lines)
    chain = "".join(line[:18].split()[0] for line in lines[4:] if not re.match(r"cutout|none|$", line))
    assert chain == "policy+cutmix+pick"  # whole, though in pieces


def test_without_students_there_is_no_column_and_without_a_ratio_a_dash():
    lines = printed(made_diagnosis(made_row("none", 0.0, ratio=None)))
    assert "test loss" not in lines[2]
    assert any(re.match(r"none +0 ± 0\.1 +– ", line) for line in lines)


def test_the_level_and_what_it_cannot_be_are_always_said():
    level, caveat = diagnosis_notes(made_diagnosis(*ROWS))
    assert "100 balanced classes, without augmentation: 5.56 (1564 groups of 640 answers)" in level
    assert caveat.startswith("Not a fitness: destroyed images get a low T. stddev")


@pytest.mark.parametrize(
    ("one", "said"),
    [({"coefficient": 0.9581, "p_value": 0.00005}, "0.96 (p 5e-05)"), ({"coefficient": None, "p_value": None}, "–")],
)
def test_correlations(one, said):
    correlation = {"count": 9, "pearson": one, "spearman": one, "kendall": one}
    _, line, _ = diagnosis_notes(made_diagnosis(*ROWS, correlation=correlation))
    assert f"of the 9 that have students and pass the guard: pearson {said}, spearman {said}, kendall {said}." in line
