"""Bad input at the command line: exit code 2, an error that names place, value and rule, and nothing written."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cli_helpers import (
    TINY,
    assert_refused,
    flip_byte,
    options,
    rolekd,
    write_images,
    write_network,
)

from rolekd_ray.models.zoo import build_network
from rolekd_ray.training.checkpoint import save_checkpoint

torch.set_num_threads(1)

TINY_WORDS = options(TINY)
SEGMENT = {"epochs": 2, "policy": [{"op": "rotate", "probability": 0.5, "magnitude_bin": 3}]}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, tmp_path_factory) -> Path:
    """An empty current folder; decoded images are cached outside of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    return tmp_path


@pytest.fixture(scope="session")
def made_run(tmp_path_factory) -> Path:
    """A finished search."""
    folder = tmp_path_factory.mktemp("made")
    done = rolekd("search", "--local", "--storage", folder, "--name", "a", *TINY_WORDS)
    assert done.code == 0, done.err
    return folder / "a"


@pytest.fixture
def run(made_run, folder) -> Path:
    """A copy of it in the current folder: `runs/a`."""
    shutil.copytree(made_run, folder / "runs" / "a")
    return Path("runs/a")


def write_yaml(name: str, data: object) -> Path:
    Path(name).write_text(yaml.safe_dump(data))
    return Path(name)


def schedule_file(**changes: object) -> Path:
    policy = [{**SEGMENT["policy"][0], **changes}]
    segments = [{**SEGMENT, "policy": policy}]
    data = {"format": "rolekd.schedule/1", "space": "cifar10_pba", "roles": {"student": {"segments": segments}}}
    return write_yaml("mine.yaml", data)


# Settings: (what follows `search --local` and the tiny settings, words of the error)
SETTINGS = {
    "population of 1": ("--set search.population_size=1", "quickstart.yaml", "search.population_size", "1", "2"),
    "text for a number": ("--set search.epochs=many", "search.epochs", "'many'", "integer"),
    "out of range": ("--set search.quantile=0.7", "search.quantile", "0.7", "0.5"),
    "unknown network": ("--set student.model=resnet21", "student.model", "'resnet21'", "Did you mean 'resnet"),
    "unknown loss": (
        "--set 'distill.losses={hintn: 1}'",
        "distill.losses",
        "'hintn'",
        "cross_entropy",
        "Did you mean 'hinton'?",
    ),
    "unknown layer": (
        "--set 'distill={losses: {hint: 1}, layers: {hint: {student: [stagee2], teacher: [stage2]}}}'",
        "distill.layers.hint.student",
        "'stagee2'",
        "Did you mean 'stage",
    ),
    "unequal numbers of layers": (
        "--set 'distill={losses: {hint: 1}, layers: {hint: {student: [stage1, stage2], teacher: [stage2]}}}'",
        "distill.layers.hint",
        "teacher: got 1 layers; expected 2, as many as the student's",
    ),
    "layers of nobody": (
        "--set 'distill={losses: {hint: 1}, layers: {hint: {}}}'",
        "distill.layers.hint: got {}",
        "expected student, teacher or both",
    ),
    "layers for a method that has none": (
        "--set 'distill.layers={hinton: {student: [stage1], teacher: [stage2]}}'",
        "distill.layers",
        "'hinton'",
    ),
    "an option of another type": (
        "--set 'distill.options={hinton: {squared_temperature: 3}}'",
        "distill.options.hinton.squared_temperature: got 3; expected true or false",
    ),
    "an unknown option": (
        "--set 'distill.options={hinton: {squared_temprature: true}}'",
        "distill.options.hinton",
        "Did you mean 'squared_temperature'?",
    ),
    "clipping to no labels": (
        "--set 'distill={losses: {hinton: 1}, clip_to_task: true}'",
        "distill.clip_to_task",
        "expected cross_entropy with a weight",
    ),
    "clipping to labels whose weight may evolve to nothing": (
        "--set 'distill={losses: {cross_entropy: 1, hinton: 1}, clip_to_task: true}' "
        "--set 'space.scalars={losses.cross_entropy: {initial: 1, range: [0, 2]}}'",
        "space.scalars.losses.cross_entropy: got a range from 0; expected one above 0",
    ),
    "fewer branches than two": (
        "--set 'distill={losses: {cross_entropy: 1, one: 1}, options: {one: {branches: 1}}}'",
        "distill.options.one.branches: got 1; expected at least 2",
    ),
    "unknown scalar": (
        "--set 'space.scalars.temprature={initial: 4, range: [1, 8]}'",
        "space.scalars",
        "'temprature'",
        "Did you mean 'temperature'?",
    ),
    "unknown key": ("--set search.epoch=3", "quickstart.yaml: search", "'epoch'", "Did you mean 'epochs'?"),
    "no equals sign": ("--set search.epochs", "--set", "'search.epochs'", "key=value"),
    "no key": ("--set =3", "--set", "'=3'", "key=value"),
    "below no section": ("--set source.x=3", "--set source.x", "'source'", "section"),
    "not YAML": ("--set seed=[1", "--set seed", "YAML"),
    "unknown configuration": ("-c quikstart", "quikstart", "Did you mean 'quickstart'?"),
    "no such configuration": ("-c nowhere/mine.yaml", "nowhere/mine.yaml", "no such file"),
    "validation larger than the data": ("--set data.validation=100000", "validation 100000", "expected at most"),
    "training set larger than the data": ("--set data.train=100000", "train 100000", "expected at most"),
    "final training set larger than the data": ("--set final.train=100000", "100000", "expected at most"),
    "one training image": ("--set data.train=1", "data.train", "1", "at least 2"),
    "batch of 1": ("--set training.batch_size=1", "training.batch_size", "1", "2"),
    "a path for the bundled data": ("--set data.path=here", "data.path", "here'", "expected none"),
    "a source without path": ("--set data.source=parquet", "data.path", "parquet"),
    "missing data": ("--set data.source=parquet --set data.path=gone", "data.path", "gone"),
    "missing teacher": ("--set teacher.checkpoint=gone", "teacher.checkpoint", "gone", "no such checkpoint"),
    "given student": ("--set student.checkpoint=net", "student.checkpoint", "expected none"),
    "given teacher that shall co-evolve": (
        "--set search.protocol=coevolve --set teacher.checkpoint=net",
        "teacher.checkpoint",
        "search.protocol: sequential",
    ),
    "a search that reaches no network": (
        "--set distill.view_mode=shared_teacher",
        "distill.view_mode",
        "'shared_teacher'",
        "protocol sequential",
    ),
    "GPUs that are not there": ("--set slots.resources_per_worker.gpus=1", "slots.resources_per_worker.gpus", "1", "0"),
    "network for larger images": ("--set teacher.model=alexnet", "teacher.model", "alexnet", "8x8"),
    "bits that there are not": (
        "--set student.model=resnet8_w3a2",
        "student.model",
        "weights: got 3",
        "1, 2, 4, 8, 32",
    ),
    "negative seed of the split": ("--set data.split_seed=-1", "data.split_seed", "-1", "at least 0"),
}


MANY = """
  --set 'distill.losses={cross_entropy: 1, hint: 1, vid: 1, mutual: 1, attention: 1}'
  --set distill.view_mode=%s --set teacher.checkpoint=net --set student.model=resnet18
  --set 'distill.layers={hint: {student: [layr2], teacher: [stage9]}, hintt: {student: [a], teacher: [b]}}'
  --set 'distill.options={mutual: {temprature: 1}, cosine: {a: 1}, hint: {temperature: 2.0}}'
"""


@pytest.mark.parametrize("verb", ["check quickstart", "run --local"])
@pytest.mark.parametrize("view_mode", ["independent", "teacher_clean"])
def test_all_problems_of_a_distillation_are_told_at_once(verb, view_mode):
    refused = assert_refused(
        lambda: rolekd(f"{verb} {MANY % view_mode}"),
        f"distill.view_mode: got '{view_mode}'; expected shared_student or shared_teacher for hint",
        f"distill.view_mode: got '{view_mode}'; expected shared_student or shared_teacher for vid",
        "distill.layers.hint.student: unknown layer 'layr2'",
        "Did you mean 'layer2'?",
        "distill.layers.hint.teacher: unknown layer 'stage9'",
        "distill.layers: unknown method of distill.losses with layers 'hintt'",
        "distill.layers.attention: got none; expected names of layers",
        "rolekd check --layers MODEL lists them",
        "distill.layers.vid: got none",
        "distill.options.mutual: unknown option 'temprature'",
        "distill.options: unknown method of distill.losses 'cosine'",
        "distill.options.hint: got 'temperature'; expected nothing, for it has no options",
        f"distill.view_mode: got '{view_mode}'; expected shared_student or shared_teacher for attention",
        "teacher.checkpoint: got a trained network; expected none, for mutual trains a peer",
    )
    assert len([line for line in refused.err.splitlines() if line.startswith("error: ")]) == 12


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as on a machine without one
    arguments, *words = SETTINGS[case]
    result = assert_refused(lambda: rolekd(f"search --local {' '.join(TINY_WORDS)} {arguments}"), *words)
    assert all(line.startswith("error: ") for line in result.err.splitlines()), result.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("check", "expected a configuration, --layers"),
        ("check --layers resnet21", "network: unknown network 'resnet21'"),
        ("check quickstart --layers resnet8", "expected the network's name alone"),
        ("check --methods quickstart", "--methods: got other arguments beside it"),
        ("check --layers resnet8 --set seed=1", "expected the network's name alone"),
    ],
)
def test_check_of_layers(words, problem):
    assert_refused(lambda: rolekd(words), problem)


def test_check_refuses_what_a_search_would():
    assert_refused(lambda: rolekd("check quickstart --set distill.view_mode=shared_teacher"), "distill.view_mode")


def test_all_problems_of_a_file_at_once():
    file = write_yaml(
        "mine.yaml",
        {
            "search": {"populaton_size": 4},
            "space": {"ops": {"rotat": {"range": [0, 3]}}},
            "training": {"learning_rate": -1},
        },
    )
    assert_refused(
        lambda: rolekd("run", "--local", "-c", file),
        "mine.yaml: search: unknown key 'populaton_size'",
        "Did you mean 'population_size'?",
        "mine.yaml: space",
        "'rotat'",
        "Did you mean 'rotate'?",
        "training.learning_rate: got -1",
        "greater than 0",
    )


def test_a_configuration_that_is_a_folder_or_binary_or_a_list():
    Path("mine.yaml").mkdir()
    assert_refused(lambda: rolekd("check mine.yaml"), "mine.yaml", "cannot be read")
    Path("other.yaml").write_bytes(b"\xff\xfe\x00\x80" * 10)
    assert_refused(lambda: rolekd("check other.yaml"), "other.yaml", "cannot be read as text")
    write_yaml("list.yaml", [1, 2])
    assert_refused(lambda: rolekd("check list.yaml"), "list.yaml", "mapping", "[1, 2]")


class TestSchedules:
    @pytest.mark.parametrize("verb", ["train student -o net --schedule", "export"])
    def test_probability_out_of_range(self, verb):
        schedule_file(probability=1.7)
        assert_refused(
            lambda: rolekd(f"{verb} mine.yaml"),
            "mine.yaml: roles.student.segments[0].policy[0]",
            "probability: got 1.7",
            "in [0, 1]",
        )

    def test_misspelt_op(self):
        schedule_file(op="rotat")
        assert_refused(lambda: rolekd("export mine.yaml"), "mine.yaml", "'rotat'", "Did you mean 'rotate'?")

    @pytest.mark.parametrize("form", ["pba", "torchvision"])
    def test_export_of_a_role_that_the_schedule_lacks(self, form):
        file = schedule_file()
        assert_refused(
            lambda: rolekd("export", file, "--role", "teacher", "--format", form), "--role", "'teacher'", "student"
        )

    def test_training_of_a_role_that_the_schedule_lacks(self):
        file = schedule_file()
        assert_refused(
            lambda: rolekd("train", "teacher", "-o", "net", "--schedule", file), "--schedule", "mine.yaml", "teacher"
        )

    def test_no_schedule_file(self):
        assert_refused(lambda: rolekd("train student -o net --schedule gone.yaml"), "gone.yaml", "no such file")

    def test_of_pbas_form_only_where_it_can_be_said(self, run):
        assert_refused(
            lambda: rolekd("export runs/a --format pba -o out.txt"),
            "export to pba: ops: got rotate, translate_x",
            "expected rotate, translate_x, translate_y, brightness, color",
            "scalars: got temperature; expected none",
        )

    def test_export_to_where_nothing_can_be_written(self):
        schedule_file()
        Path("taken").write_text("a file")
        assert_refused(lambda: rolekd("export mine.yaml -o taken/out.yaml"), "taken", "cannot be written")
        Path("there").mkdir()
        assert_refused(lambda: rolekd("export mine.yaml -o there"), "there", "cannot be written", "directory")


class TestImport:
    def test_wrong_format(self, shared_data):
        file = shared_data / "published" / "pba" / "rcifar10_16_wrn.txt"
        assert_refused(
            lambda: rolekd("import", file, "--format", "rolekd", "--epochs", 200, "-o", "out.yaml"),
            "rcifar10_16_wrn.txt: line 1",
            "Did you mean --format pba?",
        )

    def test_too_few_epochs(self, shared_data):
        file = shared_data / "published" / "pba" / "rcifar10_16_wrn.txt"
        assert_refused(
            lambda: rolekd("import", file, "--format", "pba", "--epochs", 3, "-o", "out.yaml"),
            "rcifar10_16_wrn.txt: epochs: got 3",
            "expected at least",
        )

    def test_what_is_no_file_and_what_is_no_schedule(self):
        assert_refused(lambda: rolekd("import gone.txt --format pba --epochs 3"), "gone.txt", "no such file")
        Path("mine.txt").write_text("")
        assert_refused(lambda: rolekd("import mine.txt --format pba --epochs 3"), "mine.txt", "empty")
        schedule_file()
        assert_refused(lambda: rolekd("import mine.yaml --format pba --epochs 3"), "mine.yaml", "schedule file already")


class TestImages:
    def search(self, *more: str):
        return rolekd("search", "--local", *TINY_WORDS, "--set", "data.source=parquet", "--set", "data.path=images",
                      *options({"data.train": 20, "data.validation": 10}), *more)  # fmt: skip

    def test_label_out_of_range(self):
        write_images(Path("images"), label=lambda row: -1 if row == 7 else row % 4)
        assert_refused(self.search, "train.parquet row 7", "label out of range, got -1", "expected 0..")

    def test_images_of_differing_size(self):
        write_images(Path("images"), size=lambda row: (9, 8) if row == 5 else (8, 8))
        assert_refused(self.search, "train.parquet row 5", "got 9x8 pixels", "expected 8x8", "image_size")

    def test_no_rows_or_no_bytes(self):
        write_images(Path("images"), count=0)
        assert_refused(self.search, "train.parquet", "no rows", "at least one image")
        Path("images/train.parquet").write_bytes(b"")
        assert_refused(self.search, "train.parquet", "not a Parquet file")

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_damaged(self, damage):
        file = write_images(Path("images")) / "train.parquet"
        data = file.read_bytes()
        if damage == "cut":
            file.write_bytes(data[: len(data) // 2])
        else:
            flip_byte(file, len(data) // 2)
        assert_refused(self.search, "train.parquet")

    def test_a_folder_without_test_split_is_found_before_hours_of_training(self):
        """`run` evaluates on the test split at its very end; a search never opens it."""
        write_images(Path("images"))
        Path("images/test.parquet").unlink()
        words = [*TINY_WORDS, *options({"data.source": "parquet", "data.path": "images"})]
        small = options({"data.train": 20, "data.validation": 10, "final.train": 20})
        assert_refused(lambda: rolekd("run", "--local", *words, *small), "images", "test*.parquet")


class TestCheckpoints:
    """One that is given as teacher to a run and to a training, or evaluated."""

    USES = ("search --local --set teacher.checkpoint=net", "train student -o out --teacher net", "evaluate net")

    def call(self, use: str):
        verb, *rest = use.split()
        settings = TINY_WORDS if verb != "evaluate" else []
        return rolekd(verb, *settings, *rest)

    @pytest.mark.parametrize("use", USES)
    @pytest.mark.parametrize("file", ["tensors.safetensors", "checkpoint.json"])
    @pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
    def test_damaged(self, use, file, damage):
        place = write_network(Path("net")) / file
        if damage == "flipped":
            flip_byte(place, 400)
        elif damage == "cut":
            place.write_bytes(place.read_bytes()[:-100])
        else:
            place.unlink()
        assert_refused(lambda: self.call(use), "net", file, "" if damage == "gone" else "damaged")

    @pytest.mark.parametrize("use", USES)
    def test_missing(self, use):
        assert_refused(lambda: self.call(use), "net: no such checkpoint")

    def test_another_architecture(self):
        write_network(Path("net"), "resnet14")
        assert_refused(
            lambda: self.call(self.USES[0]), "net: of another architecture", "got 'resnet14'", "expected 'resnet8'"
        )

    @pytest.mark.parametrize("use", USES[:2])
    def test_another_number_of_classes(self, use):
        write_network(Path("net"), data=write_images(Path("images"), num_classes=4))
        assert_refused(lambda: self.call(use), "net: of another architecture", "classes: got 4", "expected 10")

    def test_images_that_are_gone(self):
        write_network(Path("net"), data=write_images(Path("images")))
        shutil.rmtree("images")
        assert_refused(lambda: rolekd("evaluate net"), "data.path", "images")

    @pytest.mark.parametrize("use", USES)
    def test_a_training_under_way_is_no_teacher(self, use):
        network = build_network("resnet8", num_classes=10, channels=1, seed=0)
        save_checkpoint(Path("net"), {"networks": {"teacher": network.state_dict()}}, {"plan": {}, "seconds": 1.0})
        assert_refused(lambda: self.call(use), "net: a training under way", "expected a finished network")

    @pytest.mark.parametrize("use", USES)
    def test_a_folder_with_something_else(self, use):
        Path("net").mkdir()
        Path("net/notes.txt").write_text("mine")
        assert_refused(lambda: self.call(use), "net: not a checkpoint", "checkpoint.json")

    @pytest.mark.parametrize("use", USES[:2])
    def test_a_teacher_that_saw_what_is_held_out_here(self, use):
        """The tiny checkpoints hold out 60 images."""
        write_network(Path("net"))
        verb, *rest = use.split()
        words = [verb, *TINY_WORDS, "--set", "data.validation=50", *rest]
        assert_refused(lambda: rolekd(*words), "net: data.validation: got 60; expected 50", "held out here")


class TestTraining:
    def test_into_a_folder_with_something_else(self):
        Path("net").mkdir()
        Path("net/notes.txt").write_text("mine")
        assert_refused(
            lambda: rolekd("train", "student", "-o", "net", *TINY_WORDS), "net: exists", "expected a new folder"
        )

    def test_a_teacher_for_the_teacher(self):
        write_network(Path("net"))
        assert_refused(lambda: rolekd("train teacher -o out --teacher net"), "--teacher", "expected none")

    @pytest.mark.parametrize("losses", ["cross_entropy: 1", "cross_entropy: 1, mutual: 1"])
    def test_a_teacher_that_nothing_learns_from(self, losses):
        words = f"train student -o out --teacher net --set 'distill.losses={{{losses}}}'"
        assert_refused(lambda: rolekd(words), "--teacher: got net; expected none", losses.split(":")[0])

    def test_unknown_network(self):
        assert_refused(
            lambda: rolekd("train student -o out --model resnet9"), "student.model", "'resnet9'", "Did you mean"
        )

    @pytest.mark.parametrize(
        "arguments, rule",
        [("--epochs many", "integer"), ("--epochs 0", "greater than or equal to 1"), ("--variant back", "flattened")],
    )
    def test_options_out_of_range(self, arguments, rule):
        assert_refused(lambda: rolekd(f"train student -o out {arguments}"), arguments.split()[0], rule)

    def test_unknown_role(self):
        assert_refused(lambda: rolekd("train professor -o out"), "professor", "teacher", "student")

    def test_gpus_that_are_not_there(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert_refused(
            lambda: rolekd("train", "student", "-o", "out", *TINY_WORDS, "--set", "slots.resources_per_worker.gpus=1"),
            "slots.resources_per_worker.gpus",
            "1",
        )


class TestRunDirectories:
    def test_one_that_exists(self, run):
        assert_refused(
            lambda: rolekd("search", "--local", "--name", "a", *TINY_WORDS), "runs/a: exists", "rolekd resume runs/a"
        )

    def test_storage_that_is_a_file(self):
        Path("runs").write_text("mine")
        assert_refused(lambda: rolekd("search", "--local", *TINY_WORDS), "runs", "cannot be written")

    @pytest.mark.parametrize("verb", ["resume --local", "status", "export"])
    def test_what_is_no_run(self, verb):
        assert_refused(lambda: rolekd(f"{verb} gone"), "gone")
        Path("other").mkdir()
        Path("other/config.yaml").write_text("{}")
        assert_refused(lambda: rolekd(f"{verb} other"), "other: not a run directory, lacks environment.json")

    @pytest.mark.parametrize("verb", ["resume --local", "status"])
    def test_a_file_for_a_run(self, verb):
        Path("mine").write_text("a file")
        assert_refused(lambda: rolekd(f"{verb} mine"), "mine: not a run directory")

    def test_shorter_than_it_is(self, run):
        before = (run / "config.yaml").read_bytes()
        result = rolekd("resume runs/a --local --epochs 1")
        assert result.code == 2 and result.out == ""
        assert "--epochs: got 1; expected at least 2, the run's goal" in result.err
        assert (run / "config.yaml").read_bytes() == before

    def test_settings_edited_into_nonsense(self, run):
        file = run / "config.yaml"
        file.write_text(file.read_text().replace("population_size: 2", "population_size: two"))
        assert_refused(lambda: rolekd("resume runs/a --local"), "config.yaml", "search.population_size", "'two'")

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"verb": "dance"}'])
    def test_damaged_environment(self, run, content):
        (run / "environment.json").write_text(content)
        assert_refused(lambda: rolekd("resume runs/a --local"), "runs/a/environment.json")

    @pytest.mark.parametrize("verb", ["resume --local", "status", "export"])
    def test_damaged_log(self, run, verb):
        lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
        (run / "log.jsonl").write_bytes(b"".join([lines[0], b"\x00\x00\n", *lines[2:]]))
        (run / "best" / "schedule.yaml").unlink()
        result = rolekd(f"{verb} runs/a")
        assert result.code == 2 and result.out == "", result
        assert "runs/a/log.jsonl: line 2: damaged" in result.err

    def test_export_before_anything_was_searched(self, run):
        for name in ("best", "teacher"):
            shutil.rmtree(run / name)
        first = (run / "log.jsonl").read_bytes().splitlines(keepends=True)[0]
        (run / "log.jsonl").write_bytes(first)
        assert_refused(lambda: rolekd("export runs/a"), "runs/a: no member has a score yet")


@pytest.mark.parametrize("arguments", ["dance", "run --colour", "import f --format pba", "export f --format xml"])
def test_wrong_usage(arguments):
    assert_refused(lambda: rolekd(arguments), "rror", arguments.split()[0])
