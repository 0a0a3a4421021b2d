"""The run directory: made once, opened again, whole."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from rolekd_ray import __version__
from rolekd_ray.config import load_settings
from rolekd_ray.errors import ConfigError, RunDirectoryError, StorageError
from rolekd_ray.search.run_directory import PACKAGES, RunDirectory, create_run, installed_version, open_run

SETTINGS = load_settings("quickstart", ["seed=17", "data.train=123", "training.weight_decay=1e-5"])


def test_a_new_run_holds_settings_and_environment(tmp_path):
    run = create_run(tmp_path / "deep" / "runs", "a", SETTINGS, verb="search")
    assert run.path == tmp_path / "deep" / "runs" / "a"
    assert sorted(os.listdir(run.path)) == ["config.yaml", "environment.json"]
    again = open_run(run.path)
    assert again == run and again.settings() == SETTINGS
    found = again.environment()
    assert (found["verb"], found["seed"]) == ("search", 17)
    assert found["packages"].keys() == set(PACKAGES)
    for package in ("ray", "torch", "pyarrow", "numpy"):
        module = __import__(package)
        assert found["packages"][package].split("+")[0] == module.__version__.split("+")[0]
    assert found["cpus"] == os.cpu_count() and found["processor"] and found["platform"] and found["command"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", found["time"])


def test_a_run_tells_what_it_is_trained_on(tmp_path):
    images = {"search": {"images": 3, "class_counts": [2, 1]}}
    assert create_run(tmp_path, "a", SETTINGS, verb="run", images=images).environment()["images"] == images
    assert "images" not in create_run(tmp_path, "b", SETTINGS, verb="run").environment()


def test_the_commit_is_the_checkouts(tmp_path):
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        pytest.skip("needs a git checkout")
    commit = create_run(tmp_path, "a", SETTINGS, verb="run").environment()["commit"]
    described = re.fullmatch(r"(?:.*-g)?([0-9a-f]{12,})\+?", commit)
    tagged = subprocess.run(["git", "-C", str(root), "tag", "--points-at", "HEAD"], capture_output=True, text=True)
    assert tagged.stdout.strip() or head.stdout.startswith(described.group(1))


def test_settings_can_be_changed_and_are_never_half_written(tmp_path):
    run = create_run(tmp_path, "a", SETTINGS, verb="run")
    longer = SETTINGS.model_copy(update={"search": SETTINGS.search.model_copy(update={"epochs": 99})})
    run.set_settings(longer)
    assert open_run(run.path).settings() == longer
    assert sorted(os.listdir(run.path)) == ["config.yaml", "environment.json"]


def test_a_run_without_name_is_named_by_the_time(tmp_path):
    assert re.fullmatch(r"\d{8}-\d{6}", create_run(tmp_path, None, SETTINGS, verb="run").path.name)


def test_a_run_is_never_overwritten(tmp_path):
    run = create_run(tmp_path, "a", SETTINGS, verb="run")
    before = (run.path / "environment.json").read_bytes()
    with pytest.raises(RunDirectoryError) as error:
        create_run(tmp_path, "a", load_settings("cifar10_pba"), verb="search")
    assert str(error.value) == (
        f"{run.path}: exists; expected a new name. Go on with it by `rolekd resume {run.path}`, or choose another "
        "--name."
    )
    assert run.settings() == SETTINGS and (run.path / "environment.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/a: cannot be written: Not a directory"):
        create_run(tmp_path / "file", "a", SETTINGS, verb="run")


@pytest.mark.parametrize(
    "kept, lacking", [((), "config.yaml, environment.json"), (("config.yaml",), "environment.json")]
)
def test_what_is_no_run_is_refused(tmp_path, kept, lacking):
    for name in kept:
        (tmp_path / name).touch()
    with pytest.raises(RunDirectoryError, match=f"not a run directory, lacks {lacking}$"):
        open_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="lacks config"):
        open_run(tmp_path / "nowhere")


def test_a_spoilt_configuration_is_refused_by_name(tmp_path):
    run = create_run(tmp_path, "a", SETTINGS, verb="run")
    (run.path / "config.yaml").write_text("search: {epochs: -3}")
    with pytest.raises(ConfigError, match=r"config\.yaml: search\.epochs: got -3"):
        run.settings()


def test_paths():
    run = RunDirectory(Path("runs/a"))
    assert (run.schedule, run.teacher) == (Path("runs/a/best/schedule.yaml"), Path("runs/a/best/teacher"))
    assert run.results == Path("runs/a/results.json")


def test_versions():
    assert installed_version("rolekd_ray") in (__version__, None)
    assert installed_version("a package that nobody has") is None
