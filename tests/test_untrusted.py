"""Runs and checkpoints of unknown origin: opening one runs no code and leads nowhere outside."""

import json
import os
import pickle
import zlib
from pathlib import Path

import pytest
import torch
from cli_helpers import assert_refused, rolekd, write_network, write_schedule
from made_searches import init_record, made_rule

from rolekd_ray.config import load_settings
from rolekd_ray.errors import CheckpointError, InputError, RunDirectoryError
from rolekd_ray.policy.schedule import load_schedule
from rolekd_ray.search.evaluation import evaluate_checkpoint
from rolekd_ray.search.ledger import Ledger
from rolekd_ray.search.log import read_population
from rolekd_ray.training.checkpoint import DESCRIPTION, TENSORS, load_checkpoint, save_checkpoint


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def forge(folder: Path, **changes: object) -> Path:
    """Change a checkpoint's description and make its checksum fit, as an attacker would."""
    file = folder / DESCRIPTION
    content = json.loads(file.read_text()) | changes
    content.pop("own_crc32")
    content["own_crc32"] = zlib.crc32(json.dumps(content).encode())
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    save_checkpoint(tmp_path / "run" / "net", {"networks": {"student": {"weight": torch.ones(2)}}}, {"models": {}})
    return tmp_path / "run" / "net"


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_in_place_of_the_tensors_is_not_run(checkpoint, write):
    trap = Trap(checkpoint.parent.parent / "ran")
    with open(checkpoint / TENSORS, "wb") as file:
        write(trap, file)
    data = (checkpoint / TENSORS).read_bytes()
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(checkpoint)
    forge(checkpoint, size=len(data), crc32=zlib.crc32(data))
    assert_refused(lambda: rolekd("evaluate", checkpoint), "damaged", folder=checkpoint)
    assert not trap.folder.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.folder.exists(), "the trap works"


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "{absolute}", "a/../../secret.safetensors", "..", ".", "", "a\\b", "a\n", 3, None]
)
def test_a_description_cannot_name_tensors_outside_its_folder(checkpoint, name):
    secret = checkpoint.parent / "secret.safetensors"
    secret.write_bytes((checkpoint / TENSORS).read_bytes())
    forge(checkpoint, tensors=str(secret) if name == "{absolute}" else name)
    with pytest.raises(CheckpointError, match=r"tensors: got .*; expected the name of a file beside it"):
        load_checkpoint(checkpoint)


def test_a_name_beside_the_description_is_fine(checkpoint):
    (checkpoint / TENSORS).rename(checkpoint / "tensors-1a.safetensors")
    forge(checkpoint, tensors="tensors-1a.safetensors")
    assert load_checkpoint(checkpoint)[0]["networks"]["student"]["weight"].tolist() == [1, 1]


def test_a_checkpoint_does_not_say_which_server_is_asked(tmp_path):
    folder = write_network(tmp_path / "net")
    content = json.loads((folder / DESCRIPTION).read_text())
    forge(
        folder, description=content["description"] | {"teacher": "s3://theirs/x?endpoint_override=http://127.0.0.1:1"}
    )
    assert "test_teacher_agreement" not in evaluate_checkpoint(folder)
    theirs = "s3://theirs/x?endpoint_override=http://127.0.0.1:1"
    for named in ([theirs], [str(folder), theirs], [theirs, str(folder)]):  # nor do an ensemble's members
        forge(folder, description=content["description"] | {"teacher": named})
        assert "test_teacher_agreement" not in evaluate_checkpoint(folder)
    forge(folder, description=content["description"] | {"teacher": [str(folder), str(folder)], "combine": "other"})
    assert evaluate_checkpoint(folder)["test_teacher_agreement"] == 1


EVIL = "!!python/object/apply:os.system ['touch {file}']"


def test_yaml_that_asks_for_code_is_refused(tmp_path):
    text, file = EVIL.format(file=tmp_path / "ran"), tmp_path / "evil.yaml"
    for content in (text, f"search: {text}\n", f"format: rolekd.schedule/1\nspace: {text}\n"):
        file.write_text(content)
        for load in (load_settings, load_schedule):
            with pytest.raises(InputError, match="not valid YAML"):
                load(file)
    assert not (tmp_path / "ran").exists()


def test_a_run_whose_files_ask_for_code_is_refused(tmp_path):
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    (run / "environment.json").write_text('{"verb": "search"}')
    (run / "config.yaml").write_text(EVIL.format(file=tmp_path / "ran"))
    assert_refused(lambda: rolekd("resume", run, "--local"), "not valid YAML", folder=tmp_path)
    schedule = write_schedule(run / "best" / "schedule.yaml")
    schedule.write_text(schedule.read_text() + "extra: " + EVIL.format(file=tmp_path / "ran"))
    assert_refused(lambda: rolekd("export", run), "not valid YAML", folder=tmp_path)


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "score", "member": "../../victim", "generation": 0, "score": 0.5},
        {"kind": "score", "member": 0, "generation": "/victim", "score": 0.5},
        {"kind": "score", "member": 8, "generation": 0, "score": 0.5},
        {"kind": "score", "member": [0], "generation": 0, "score": 0.5},
        {"kind": "score", "member": 0, "generation": 0, "score": float("nan")},
        {"kind": "score", "member": 0, "generation": 0, "score": "high"},
        {"kind": "score", "member": 0},
        {"kind": "extend", "epochs": "../x"},
        {"kind": "__class__"},
        {},
    ],
)
def test_a_log_names_no_member_or_state_that_its_rule_does_not_know(tmp_path, record):
    run, victim = tmp_path / "run", tmp_path / "victim"
    (run / "states").mkdir(parents=True)
    victim.mkdir()
    lines = [init_record(made_rule()), record]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for opening in (lambda: read_population(run), lambda: Ledger(run, made_rule())):
        with pytest.raises(RunDirectoryError, match="does not fit those before it"):
            opening()
    assert victim.is_dir() and (run / "states").is_dir()


@pytest.mark.parametrize("rule", [{}, {"population_size": 3}, None, "rule", [1]])
def test_a_log_whose_rule_is_none_is_refused(tmp_path, rule):
    (tmp_path / "log.jsonl").write_text(json.dumps(init_record(made_rule()) | {"rule": rule}) + "\n")
    with pytest.raises(RunDirectoryError, match="rule: damaged"):
        read_population(tmp_path)
