"""A search in which chains of agents and their settings evolve: history, lineage, a kill, export, replay."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from cli_helpers import assert_refused, rolekd, write_network

from rolekd_ray.search.log import LOG, read_log
from rolekd_ray.training.checkpoint import load_checkpoint

torch.set_num_threads(1)

CHAINS = ["policy", "policy+cutmix", "randaugment", "learned", "cutmix+pick"]
CRITERIA = ["teacher_entropy", "student_entropy", "divergence", "dissimilarity"]
SCALARS = {
    "cutmix.alpha": {"initial": 1, "range": [0.5, 2]},
    "learned.learning_rate": {"initial": 0.005, "range": [0.0001, 0.1], "log": True},
    "learned.lower": {"initial": 30, "range": [1, 60]},
    "learned.upper": {"initial": 35, "range": [1, 60]},
    "learned.max_steps": {"initial": 1, "range": [1, 3]},
    "randaugment.magnitude": {"initial": 9, "range": [0, 30]},
}
SETTINGS = {
    "source": "a test",
    "data": {"train": 60, "validation": 60},
    "teacher": {"model": "resnet8", "checkpoint": "teacher"},
    "student": {"model": "resnet8"},
    "training": {"batch_size": 20, "precision": "float32"},
    "search": {"population_size": 4, "epochs": 4, "perturbation_interval_epochs": 1, "initial_policies": "random"},
    "final": {"train": 60},
    "base_augmentation": {"cutout_pixels": 0},
    "space": {
        "ops": {"rotate": {"range": [0, 27], "signed": True}},
        "scalars": SCALARS,
        "choices": {
            "agents": {"initial": "policy", "values": CHAINS, "resample_probability": 0.9},
            "pick.criterion": {"initial": CRITERIA[0], "values": CRITERIA},
        },
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a configuration and its teacher."""
    folder = tmp_path_factory.mktemp("agents")
    write_network(folder / "teacher", "resnet8")
    Path(folder / "mine.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def searched(home) -> tuple[Path, str]:
    """A finished search, and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        done = rolekd("search --local -c mine.yaml --name a")
    assert done.code == 0, done.err
    return home / "runs" / "a", done.out


@pytest.fixture(autouse=True)
def folder(home, monkeypatch) -> Path:
    monkeypatch.chdir(home)
    return home


def history(run: Path) -> list[dict]:
    """All rows, without clocks."""
    tables = [pq.read_table(file) for file in sorted((run / "history").glob("*.parquet"))]
    rows = pa.concat_tables(tables, promote_options="default").to_pylist()
    return [
        {name: value for name, value in row.items() if not name.endswith("seconds") and name != "time"} for row in rows
    ]


def test_the_history_has_what_evolved_and_what_it_did(searched):
    rows = history(searched[0])
    assert len(rows) == 16
    columns = ["student/agents", "student/pick.criterion", *(f"student/{name}" for name in SCALARS)]
    assert all(row[name] is not None for row in rows for name in columns)
    assert len({row["student/agents"] for row in rows}) >= 3 and {row["student/agents"] for row in rows} <= set(CHAINS)
    for row in rows:
        chain = row["student/agents"].split("+")
        assert (row.get("student/picked_ratio") is not None) == ("pick" in chain)
        for name, value in row.items():
            if name.startswith("student_view/"):
                assert value >= 0 and (value <= 1 or name.endswith(("change", "divergence")))
        assert "policy_distance" not in row, "one role evolves"


def test_lineage_and_every_members_state_carry_them(searched):
    run, _ = searched
    records = [json.loads(line) for line in (run / "lineage.jsonl").read_text().splitlines()]
    assert records
    for record in records:
        for side in ("before", "after"):
            agents = record[side]["student"]["agents"]
            assert agents["chain"] in CHAINS and agents["pick.criterion"] in CRITERIA and set(SCALARS) <= set(agents)
    chains = {row["member"]: row["student/agents"] for row in history(run) if row["generation"] == 3}
    states = {int(folder.name[:3]): load_checkpoint(folder)[0] for folder in (run / "states").iterdir()}
    assert states.keys() == chains.keys()
    assert all({"augmentor", "optimizer", "gate"} <= state["learned"].keys() for state in states.values())
    assert any("learned" not in chain for chain in chains.values())


def test_tables_show_them(searched):
    run, printed = searched
    shown = " ".join(printed.split())
    best = yaml.safe_load((run / "best" / "schedule.yaml").read_text())["roles"]["student"]["segments"]
    for segment in best:
        assert f"agents {segment['agents']['chain']}" in shown
        assert f"pick.criterion {segment['agents']['pick.criterion']}" in shown
    assert all(f"; {name} " in shown for name in SCALARS)
    status = rolekd("status runs/a")
    assert status.code == 0 and "16 of 16 intervals" in status.out


@pytest.mark.slow
def test_a_search_that_was_killed_ends_as_one_that_was_not(searched):
    words = [sys.executable, "-m", "rolekd_ray", "search", "--local", "-c", "mine.yaml", "--name", "killed"]
    run = Path("runs/killed")
    with open("output.txt", "w") as output, subprocess.Popen(words, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + 300
        while not (run / LOG).exists() or sum(one["kind"] == "score" for one in read_log(run)) < 9:
            assert process.poll() is None and time.monotonic() < deadline, Path("output.txt").read_text()
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it had ended"
    assert rolekd("resume runs/killed --local").code == 0
    for name in ("lineage.jsonl", "best/schedule.yaml"):
        assert (run / name).read_text() == (searched[0] / name).read_text()
    assert history(run) == history(searched[0])
    for state in (searched[0] / "states").iterdir():
        assert (run / "states" / state.name / "tensors.safetensors").read_bytes() == (
            state / "tensors.safetensors"
        ).read_bytes()


def replayed(schedule: str, output: str, *words: str) -> dict:
    result = rolekd("train", "student", "-c", "mine.yaml", "--schedule", schedule, "-o", output, *words)
    assert result.code == 0, result.err
    return load_checkpoint(Path(output))[0]["networks"]["student"]


def test_an_exported_schedule_replays_its_chains(searched):
    assert rolekd("export runs/a --format yaml -o all.yaml").code == 0
    exported = yaml.safe_load(Path("all.yaml").read_text())
    segments = exported["roles"]["student"]["segments"]
    assert segments == yaml.safe_load((searched[0] / "best/schedule.yaml").read_text())["roles"]["student"]["segments"]
    whole = replayed("all.yaml", "whole", "--epochs", "2", "--epochs-factor", "2")
    assert all(
        torch.equal(value, whole[name]) for name, value in replayed("all.yaml", "again", "--epochs", "4").items()
    )
    ends = [whole]
    for chain in ("policy", "learned", "cutmix+pick"):
        for segment in segments:
            segment["agents"]["chain"] = chain
        Path(f"{chain}.yaml").write_text(yaml.safe_dump(exported))
        ends.append(replayed(f"{chain}.yaml", f"by-{chain}", "--epochs", "4"))
    weights = [tuple(state["conv1.weight"].flatten().tolist()) for state in ends]
    assert len(set(weights)) >= 3, "chains of the file make the views"


def test_chains_that_the_losses_cannot_bear_are_refused_before_the_training(searched):
    exported = yaml.safe_load((searched[0] / "best/schedule.yaml").read_text())
    for segment in exported["roles"]["student"]["segments"]:
        segment["agents"]["chain"] = "cutmix+pick"
    Path("picks.yaml").write_text(yaml.safe_dump(exported))
    words = "train student -c mine.yaml --schedule picks.yaml -o net --set 'distill.losses={cross_entropy: 1, crd: 1}'"
    assert_refused(lambda: rolekd(words), "--schedule: picks.yaml: got pick in 'cutmix+pick'; expected no crd",
                   "--schedule: picks.yaml: got 'cutmix+pick', which mixes images; expected no crd")  # fmt: skip
