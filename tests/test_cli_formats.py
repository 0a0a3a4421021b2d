"""Schedules out to others and in from others, at the command line."""

import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, environment, options, rolekd, tree, write_schedule

from rolekd_ray.policy.schedule import Schedule, load_schedule, schedule_text
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import read_description

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


def searched(tmp_path_factory, **changes: object) -> Path:
    storage = tmp_path_factory.mktemp("searched")
    done = rolekd("search", "--local", "--storage", storage, "--name", "a", *options(TINY | changes))
    assert done.code == 0, done.err
    return storage / "a"


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory) -> Path:
    """A search of both roles over the digits' own space, which has a scalar."""
    return searched(tmp_path_factory, **{"search.protocol": "coevolve"})


@pytest.fixture(scope="module")
def on_pbas_grid(tmp_path_factory) -> Path:
    """A search of both roles over PBA's space."""
    return searched(
        tmp_path_factory,
        **{"search.protocol": "coevolve", "space": "cifar10_pba", "search.initial_policies": "random"},
    )


def exported(source: Path, *words: object) -> str:
    result = rolekd("export", source, *words)
    assert result.code == 0, result.err
    assert result.err == ""
    return result.out


def in_any_order(schedule: Schedule, role: Role) -> list:
    """Segments with their settings sorted: a policy file does not say which copy of an op a setting was."""
    return [(s.epochs, sorted(map(astuple, s.policy.settings))) for s in schedule.firing().roles[role]]


def imported(file: Path, *words: object) -> Schedule:
    result = rolekd("import", file, *words, "-o", "imported.yaml")
    assert result.code == 0, result.err
    assert result.out == "" and "wrote imported.yaml" in result.err
    return load_schedule("imported.yaml")


# ---- yaml


def test_the_best_schedule_of_a_run_and_of_a_file_are_the_same(of_digits):
    before = tree(of_digits)
    text = exported(of_digits)
    Path("mine.yaml").write_text(text)
    assert load_schedule("mine.yaml") == load_schedule(of_digits / "best" / "schedule.yaml")
    assert exported(Path("mine.yaml")) == text, "a schedule file is a source too"
    assert rolekd("export", of_digits, "-o", "deep/out.yaml").out == ""
    assert Path("deep/out.yaml").read_text() == text
    assert tree(of_digits) == before


def test_of_a_search_under_way_the_best_member_so_far(of_digits):
    shutil.copytree(of_digits, "a")
    shutil.rmtree("a/best")
    lines = Path("a/log.jsonl").read_text().splitlines(keepends=True)
    Path("a/log.jsonl").write_text("".join(lines[:3]))
    Path("mine.yaml").write_text(exported(Path("a")))
    assert load_schedule("mine.yaml").epochs == 1


@pytest.mark.parametrize("variant", ["flattened", "last"])
def test_variants(variant):
    whole = load_schedule(write_schedule(Path("mine.yaml")))
    Path("other.yaml").write_text(exported(Path("mine.yaml"), "--variant", variant))
    found = load_schedule("other.yaml")
    assert found == {"flattened": whole.flatten(), "last": whole.last()}[variant] != whole


# ---- pba, ray


@pytest.mark.parametrize("role", Role)
def test_pbas_form_and_back(on_pbas_grid, role):
    whole = load_schedule(on_pbas_grid / "best" / "schedule.yaml")
    Path("mine.txt").write_text(exported(on_pbas_grid, "--format", "pba", "--role", role))
    back = imported(Path("mine.txt"), "--format", "pba", "--epochs", whole.epochs, "--role", role)
    assert back.space == whole.space and set(back.roles) == {role}
    assert in_any_order(back, role) == in_any_order(whole, role)


def test_rays_form_and_back(of_digits):
    whole = load_schedule(of_digits / "best" / "schedule.yaml")
    Path("mine.txt").write_text(exported(of_digits, "--format", "ray"))
    rows = [json.loads(line) for line in Path("mine.txt").read_text().splitlines()]
    assert all(len(row) == 6 for row in rows)
    assert imported(Path("mine.txt"), "--format", "ray", "--epochs", whole.epochs) == whole
    assert "temperature" in schedule_text(whole), "scalars survive"


# ---- published files; epochs are those of the searches that wrote them


def test_pbas_published_schedule(shared_data):
    file = shared_data / "published" / "pba" / "rcifar10_16_wrn.txt"
    schedule = imported(file, "--format", "pba", "--epochs", 200)
    assert (schedule.epochs, schedule.space.name, set(schedule.roles)) == (200, "cifar10_pba", {Role.STUDENT})
    assert exported(Path("imported.yaml"), "--format", "pba").count("\n") == len(schedule.roles[Role.STUDENT]) - 1


def test_the_role_wise_papers_published_schedule(shared_data):
    file = shared_data / "published" / "role_kd_cifar100_resnet18_2bit" / "pbt_policy_13.txt"
    schedule = imported(file, "--format", "rolekd", "--epochs", 200, "--role", "teacher")
    assert (schedule.epochs, set(schedule.roles)) == (200, {Role.TEACHER})


# ---- torchvision: a file that needs no part of this project

USE = """
import sys
sys.modules["rolekd_ray"] = None  # importing it now fails
import numpy as np
import torch
from PIL import Image
from augment import transform
torch.manual_seed(0)
torch.set_num_threads(1)
image = Image.fromarray((np.arange(32 * 32 * 3) %% 251).astype(np.uint8).reshape(32, 32, 3))
changed = 0
for epoch in range(%d):
    transform.set_epoch(epoch)
    for _ in range(20):
        view = transform(image)
        assert (type(view), view.size, view.mode) == (type(image), image.size, image.mode)
        changed += view.tobytes() != image.tobytes()
print(changed)
"""


def test_torchvisions_form_runs_alone(on_pbas_grid):
    schedule = on_pbas_grid / "best" / "schedule.yaml"
    assert rolekd("export", on_pbas_grid, "--format", "torchvision", "-o", "alone/augment.py").code == 0
    Path("other.py").write_text(exported(schedule, "--format", "torchvision"))
    of_run, of_file = (runpy.run_path(file)["SPEC"] for file in ("alone/augment.py", "other.py"))
    mean = read_description(next((on_pbas_grid / "states").iterdir()))["mean"]
    assert of_run == of_file | {"fill": [round(255 * value) for value in mean]}, "a file does not know the images"
    done = subprocess.run(
        [sys.executable, "-c", USE % load_schedule(schedule).epochs],
        cwd="alone",
        env=environment(PYTHONPATH="."),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, "half of all images get two ops"
