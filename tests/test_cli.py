"""The verbs of the command line end to end, on a few digits, without Ray."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_helpers import TINY, Result, environment, options, rolekd, rolekd_process, tree, write_images, write_network

import rolekd_ray
from rolekd_ray.distill.registry import known_methods
from rolekd_ray.policy.schedule import load_schedule, schedule_to_dict
from rolekd_ray.roles import Role
from rolekd_ray.search.log import read_log
from rolekd_ray.training.checkpoint import read_description

torch.set_num_threads(1)

VERBS = ("run", "search", "resume", "status", "export", "import", "train", "evaluate", "check", "doctor")
NETWORKS = {
    "teacher": "teacher",
    "student alone": "student_alone",
    "student distilled, no augmentation": "student_plain",
    "student distilled, found schedule": "student",
}
SHIPPED = sorted((Path(__file__).parents[1] / "searchspaces").glob("*.yaml"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def started(storage: Path, verb: str = "run", **changes: object) -> Result:
    """Run the job in this process, into `storage/a`."""
    settings = options(TINY | {key.replace("__", "."): value for key, value in changes.items()})
    return rolekd(verb, "--local", "--storage", storage, "--name", "a", *settings)


Made = tuple[Path, Result]


def make(protocol: str, tmp_path_factory) -> Made:
    storage = tmp_path_factory.mktemp(protocol)
    return storage / "a", started(storage, search__protocol=protocol)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory) -> Made:
    """A finished run of the default protocol and what it printed."""
    return make("sequential", tmp_path_factory)


@pytest.fixture(scope="module")
def coevolved(tmp_path_factory) -> Made:
    """A finished run of the other protocol and what it printed."""
    return make("coevolve", tmp_path_factory)


@pytest.fixture(params=["sequential", "coevolved"])
def made(request) -> Made:
    """A finished run of either protocol and what it printed."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def run(made, folder) -> Path:
    """A copy of it in the current folder: `runs/a`."""
    shutil.copytree(made[0], folder / "runs" / "a")
    return Path("runs/a")


def results_of(run: Path) -> list[dict]:
    """The final table, without what a clock measured."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads((run / "results.json").read_text())]


def lines_of(table: str, *words: str) -> list[list[str]]:
    """The cells of the printed lines that hold a word."""
    return [line.split() for line in table.splitlines() if any(word in line for word in words)]


# ---- run, search, resume


def test_a_run_prints_the_four_networks_and_where_everything_lies(made):
    run, result = made
    assert result.code == 0, result.err
    rows = {row["network"]: row for row in results_of(run)}
    assert list(rows) == list(NETWORKS)
    for name, row in rows.items():
        table = result.out.split("Accuracy of the finished networks")[1]
        (line,) = [line for line in table.splitlines() if line.startswith(f"{name}  ")]
        assert line.split()[-4:-1] == [
            f"{row['validation_accuracy']:.4f}",
            f"{row['test_accuracy']:.4f}",
            f"{row['test_loss']:.3f}",
        ]
        assert row["test_images"] == 600 and row["validation_images"] == 60
    for place in ("best/schedule.yaml", "states/", "best", "results.json"):
        assert f"{run}/{place}" in result.out, place
    assert f"tensorboard --logdir {run}" in result.out
    (member,) = lines_of(result.out, "best member:")
    assert (Path(member[-1]) / "checkpoint.json").is_file()
    assert all(len(line) <= 80 for line in result.out.splitlines() if ": " not in line)


def test_progress_goes_to_stderr_and_results_to_stdout(made):
    run, result = made
    assert f"run directory: {run}" in result.err and "run directory" not in result.out
    assert "copies member" in result.err and "trained student alone" in result.err
    assert "Traceback" not in result.err and "error" not in result.err


def test_a_run_leaves_what_the_readme_says(made):
    run, _ = made
    for name in ("config.yaml", "environment.json", "log.jsonl", "lineage.jsonl", "history", "tensorboard", "states"):
        assert (run / name).exists(), name
    assert not [path for path in tree(run) if path.split("/")[-1].startswith(".") or path.endswith(".partial")]
    schedule = load_schedule(run / "best" / "schedule.yaml")
    assert (set(schedule.roles), schedule.epochs) == (set(Role), 2)
    assert json.loads((run / "environment.json").read_text())["verb"] == "run"


def test_each_network_was_trained_as_its_name_says(made):
    run, _ = made
    plans = {name: read_description(run / "best" / folder)["plan"] for name, folder in NETWORKS.items()}
    schedule = schedule_to_dict(load_schedule(run / "best" / "schedule.yaml"))
    assert plans["teacher"]["schedule"]["roles"] == {"teacher": schedule["roles"]["teacher"]}
    assert plans["student distilled, found schedule"]["schedule"]["roles"] == schedule["roles"]
    assert plans["student distilled, no augmentation"]["schedule"] is None is plans["student alone"]["schedule"]
    taught = [name for name, plan in plans.items() if plan["teacher"] is not None]
    assert taught == ["student distilled, no augmentation", "student distilled, found schedule"]
    assert all(plan["epochs"] == 2 and plan["train"] == 60 for plan in plans.values())


def test_checkpoints_evaluate_to_the_numbers_of_the_results(made):
    run, _ = made
    for row in results_of(run):
        found = rolekd("evaluate", run / row["checkpoint"])
        assert found.code == 0, found.err
        cells = {line[0]: line[-2:] for line in lines_of(found.out, "accuracy", "loss", "calibration", "agreement")}
        for name, metric in (("accuracy", "accuracy"), ("loss", "loss"), ("calibration", "calibration_error")):
            assert cells[name] == [f"{row[f'{split}_{metric}']:.4f}" for split in ("validation", "test")]
        assert ("test_teacher_agreement" in row) == ("distilled" in row["network"])
        agreements = [row.get(f"{split}_teacher_agreement") for split in ("validation", "test")]
        assert cells["agreement"] == (["no", "teacher"] if None in agreements else [f"{v:.4f}" for v in agreements])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(made, tmp_path):
    run, _ = made
    protocol = yaml.safe_load((run / "config.yaml").read_text())["search"]["protocol"]
    assert started(tmp_path / "same", seed=0, search__protocol=protocol).code == 0
    assert results_of(tmp_path / "same" / "a") == results_of(run)
    for name in ("best/schedule.yaml", "lineage.jsonl"):
        assert (tmp_path / "same" / "a" / name).read_bytes() == (run / name).read_bytes(), name
    assert started(tmp_path / "other", "search", seed=1, search__protocol=protocol).code == 0
    other = (tmp_path / "other" / "a" / "best" / "schedule.yaml").read_bytes()
    assert other != (run / "best" / "schedule.yaml").read_bytes()


def test_a_search_trains_no_student_to_the_end(folder, sequential):
    result = started(Path("runs"), "search")
    assert result.code == 0, result.err
    assert "best schedule: runs/a/best/schedule.yaml" in result.out and "networks" not in result.out
    assert {path.name for path in Path("runs/a/best").iterdir()} == {"schedule.yaml", "teacher"}
    assert (Path("runs/a/best/schedule.yaml")).read_bytes() == (sequential[0] / "best" / "schedule.yaml").read_bytes()


def without_clocks(run: Path) -> dict[str, str]:
    """The run's files, but for locks, the curves, which are made anew, and the record of resumes."""
    others = ("tensorboard", ".lock", "environment.json")
    return {path: digest for path, digest in tree(run).items() if not any(other in path for other in others)}


def test_resuming_a_finished_run_changes_nothing_and_prints_the_same(made, run):
    before = without_clocks(run)
    result = rolekd("resume runs/a --local")
    assert result.code == 0, result.err
    assert result.out == made[1].out.replace(str(made[0]), "runs/a")
    assert without_clocks(run) == before
    (again,) = json.loads((run / "environment.json").read_text())["resumed"]
    assert again["packages"] and again["verb"] == "run", "on what it went on is kept"


def test_a_prolonged_run_goes_on_where_it_was(run):
    """The teacher keeps its length: students of both lengths learn from one teacher."""
    log, lineage = ((run / name).read_text() for name in ("log.jsonl", "lineage.jsonl"))
    teacher = tree(run / "best" / "teacher")
    result = rolekd("resume runs/a --local --epochs 4")
    assert result.code == 0, result.err
    assert (run / "log.jsonl").read_text().startswith(log)
    records = read_log(run)[len(log.splitlines()) :]
    assert [record["kind"] for record in records] == ["extend"] + ["score"] * 4
    longer = (run / "lineage.jsonl").read_text()
    assert longer.startswith(lineage) and len(longer.splitlines()) == 3, "one decision after each of the epochs 1 to 3"
    assert load_schedule(run / "best" / "schedule.yaml").epochs == 4
    assert yaml.safe_load((run / "config.yaml").read_text())["search"]["epochs"] == 4
    assert tree(run / "best" / "teacher") == teacher
    assert "Schedule of 4 epochs" in result.out
    again = rolekd("resume runs/a --local")
    assert (again.code, again.out) == (0, result.out)


def test_a_run_goes_on_from_another_place(sequential, folder, monkeypatch):
    shutil.copytree(sequential[0], "elsewhere/b")
    Path("deeper").mkdir()
    monkeypatch.chdir("deeper")
    result = rolekd("resume ../elsewhere/b --local")
    assert result.code == 0, result.err
    assert result.out == sequential[1].out.replace(str(sequential[0]), "../elsewhere/b")


def test_a_given_teacher_is_neither_searched_nor_trained(sequential, folder):
    teacher = sequential[0] / "best" / "teacher"
    before = tree(teacher)
    result = started(Path("runs"), teacher__checkpoint=teacher, final__epochs=1)
    assert result.code == 0, result.err
    assert not Path("runs/a/teacher").exists() and not Path("runs/a/best/teacher").exists()
    assert tree(teacher) == before
    assert set(load_schedule("runs/a/best/schedule.yaml").roles) == {Role.STUDENT}
    rows = {row["network"]: row for row in results_of(Path("runs/a"))}
    assert list(rows) == list(NETWORKS)
    assert rows["teacher"]["test_accuracy"] == results_of(sequential[0])[0]["test_accuracy"]


def test_a_search_in_which_everything_diverges_fails_and_says_why(folder):
    result = started(Path("runs"), "search", training__learning_rate=1e30)
    assert (result.code, result.out) == (1, "")
    assert "runs/a/teacher: every member was dropped" in result.err.replace(str(folder) + "/", "")
    assert "rolekd resume" not in result.err, "going on would change nothing"
    for member in range(2):
        assert (
            f"error: member {member} did not reach epoch 2: {member:03d}-0000: epoch 0: loss is not finite"
            in result.err
        )
    assert "Traceback" not in result.err


# ---- status, evaluate


def test_status_lists_searches_members_and_networks(made, run):
    before = tree(run)
    result = rolekd("status runs/a")
    assert result.code == 0 and tree(run) == before
    protocol = yaml.safe_load((run / "config.yaml").read_text())["search"]["protocol"]
    titles = ["teacher's search: 4 of 4", "search: 4 of 4"] if protocol == "sequential" else ["search: 4 of 4"]
    assert [line.split(" intervals")[0] for line in result.out.splitlines() if "intervals" in line] == titles
    members = [line.split()[:2] for line in result.out.splitlines() if line.endswith("at the goal")]
    assert sorted(members) == sorted([["0", "2"], ["1", "2"]] * len(titles))
    assert "trained to the end: student, student_alone, student_plain, teacher" in result.out
    assert rolekd("status runs/a --watch").code == 0, "watching a finished run ends"


def test_evaluation_of_a_members_state(made):
    run, result = made
    (member,) = lines_of(result.out, "best member:")
    found = rolekd("evaluate", member[-1])
    assert found.code == 0, found.err
    scores = [r["metrics"]["student/validation_accuracy"] for r in read_log(run) if r["kind"] == "score"]
    accuracy, *_ = lines_of(found.out, "accuracy")
    assert float(accuracy[1]) == pytest.approx(max(scores[-2:]), abs=6e-5), "as when it was scored"
    compared = rolekd("evaluate", member[-1], "--teacher", run / "best" / "teacher")
    assert compared.code == 0 and "agreement with teacher" in compared.out
    if "coevolve" in str(run):
        teacher = rolekd("evaluate", member[-1], "--role", "teacher")
        assert teacher.code == 0 and teacher.out != found.out


def test_evaluation_where_the_images_have_moved(folder):
    net = write_network(Path("net"), data=write_images(Path("images")))
    before = rolekd("evaluate", net)
    Path("images").rename("moved")
    assert rolekd("evaluate", net).code == 2
    after = rolekd("evaluate", net, "--data", "moved")
    assert after.code == 0, after.err
    assert after.out == before.out and "40" in before.out


# ---- check, doctor, help


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_check_prints_the_settings_and_their_cost_and_touches_nothing(file, folder, monkeypatch):
    monkeypatch.setenv("ROLEKD_CACHE", str(folder / "cache"))
    for name in (file.stem, file):
        result = rolekd("check", name, "--set", "search.population_size=6", "--set", "search.epochs=10")
        assert result.code == 0, result.err
        assert tree(folder) == {}
        settings = yaml.safe_load(result.out)
        assert (settings["search"]["population_size"], settings["search"]["epochs"]) == (6, 10)
        assert settings["training"]["precision"] == "auto", "defaults are shown"
        assert "6 members x 10 epochs" in result.out.splitlines()[-1]
    again = folder / "again.yaml"
    again.write_text(result.out)
    assert rolekd("check", again).out == result.out, "what is printed is a configuration"


def test_the_version():
    found = rolekd("--version")
    assert (found.code, found.out) == (0, f"rolekd_ray {rolekd_ray.__version__}\n")


def test_check_lists_methods():
    found = rolekd("check", "--methods")
    assert found.code == 0, found.err
    rows = [line.split() for line in found.out.splitlines() if line.startswith(tuple("abcdefghijklmnopqrstuvwxyz"))]
    assert [row[0] for row in rows[1:]] == sorted(known_methods())
    assert ["svd", "stages", "1", "sum_over_batch:", "false"] in rows


def test_check_lists_the_layers_of_a_network(folder):
    result = rolekd("check", "--layers", "resnet8")
    assert result.code == 0, result.err
    first, *_, last = result.out.splitlines()
    assert first.strip() == "resnet8: 10 classes, 3x32x32"
    assert last == "stages: stage1, stage2, stage3; embedding: classifier.input"
    lines = [line.split() for line in result.out.splitlines()]
    assert ["stage2.0.shortcut.1", "BatchNorm2d", "32x16x16"] in lines and ["classifier", "Linear", "10"] in lines
    larger = rolekd("check", "--layers", "alexnet")
    assert "no defaults: methods of features need distill.layers" in larger.out and "no defaults" not in result.out
    assert larger.code == 0 and "alexnet: 10 classes, 3x224x224" in larger.out and "stages:" not in larger.out
    assert tree(folder) == {}


@pytest.mark.slow
def test_doctor(folder):
    """Starts Ray."""
    result = rolekd("doctor")
    assert result.code == 0, result
    assert tree(folder) == {}
    for word in ("python", "torch", "CPUs", "GPUs", "free memory", "storage runs", "open files", "Ray"):
        assert word in result.out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    result = rolekd(verb, "--help")
    assert result.code == 0 and result.err == ""
    assert f"rolekd {verb} [OPTIONS]" in result.out


def test_help_opens_with_a_worked_example_of_real_verbs():
    result = rolekd("--help")
    assert result.code == 0
    examples = [line.split()[1] for line in result.out.splitlines() if line.strip().startswith("rolekd ")]
    assert len(examples) >= 6 and set(examples) <= set(VERBS)
    assert all(len(line) <= 80 for line in result.out.splitlines())
    assert result.out.index("rolekd run") < result.out.index("Options:")


def test_as_a_program_it_needs_no_ray(folder):
    """A real process: `python -m rolekd_ray`; a broken Ray shows that nothing asks for it."""
    broken = folder / "broken" / "ray"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('Ray was imported')\n")
    import rolekd_ray

    path = f"{folder / 'broken'}:{Path(rolekd_ray.__file__).parents[1]}"
    words = ["run", "--local", "--name", "a", *options(TINY | {"search.protocol": "coevolve"})]
    result = rolekd_process(*words, cwd=folder, env=environment(PYTHONPATH=path))
    assert result.code == 0, result.err
    assert "student distilled, found schedule" in result.out
    assert results_of(folder / "runs" / "a")[0]["network"] == "teacher"
    refused = rolekd_process("search", "--set", "x", cwd=folder, env=environment(PYTHONPATH=path))
    assert (refused.code, refused.out) == (2, "") and "key=value" in refused.err
