"""`rolekd views`: pictures of a run, its parts and a configuration; refusals leave nothing behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import TINY, assert_refused, options, rolekd, write_network, write_schedule
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

torch.set_num_threads(1)

LEARNED = {"agents.student.chain": "policy+learned", "search.protocol": "coevolve"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a finished search of two members in `runs/a`."""
    where = tmp_path_factory.mktemp("views")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        done = rolekd("search", "--local", "--name", "a", *options(TINY | LEARNED))
    assert done.code == 0, done.err
    write_schedule(where / "mine.yaml")
    write_network(where / "net")
    return where


@pytest.fixture(autouse=True)
def here(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def drawn(*words: object) -> tuple[str, np.ndarray]:
    """Call the verb; return stdout and the picture (height, width, 3)."""
    result = rolekd("views", *words, "-o", "made/picture.png")
    assert result.code == 0, result.err
    assert "made/picture.png" in result.out.splitlines()[0]
    return result.out, np.asarray(Image.open("made/picture.png"))


def test_a_run_goes_to_its_own_tensorboard_too():
    said, picture = drawn("runs/a", "--images", 4, "--draws", 2)
    assert said.splitlines()[1].split() == ["tensorboard:", "runs/a/tensorboard/views"]
    assert picture.ndim == 3 and picture.std() > 10
    events = EventAccumulator("runs/a/tensorboard/views", size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["images"]) == {"views/teacher", "views/student"}
    (event,) = events.Images("views/student")
    assert event.step == 0  # two epochs, both drawn
    assert event.height == picture.shape[0] and event.width < picture.shape[1]
    members = {path.name for path in Path("runs/a/tensorboard").iterdir()}
    assert members >= {"views", "member-000", "member-001"}
    again = rolekd("resume", "runs/a", "--local")
    assert again.code == 0 and not Path("runs/a/tensorboard/views").exists(), "documented: made anew with the curves"


def test_states_and_configurations_go_to_tensorboard_on_demand_alone():
    state = sorted(Path("runs/a/states").iterdir())[0]
    said, of_state = drawn(state, "--images", 4)
    assert len(said.splitlines()) == 1
    said, again = drawn(state, "--images", 4, "--tensorboard", "board")
    assert said.splitlines()[1].split() == ["tensorboard:", "board"] and list(Path("board").iterdir())
    assert np.array_equal(again, of_state), "the same call draws the same picture"
    _, plain = drawn("quickstart", *options(TINY), "--images", 4)
    _, scheduled = drawn("quickstart", *options(TINY), "--images", 4, "--schedule", "mine.yaml")
    assert plain.shape != scheduled.shape or not np.array_equal(plain, scheduled)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("runs/gone", ["runs/gone: no such file or folder", "a run directory"]),
        ("runs", ["runs: got no run and no checkpoint there"]),
        ("runs/a/states/009-0001", ["unknown member's state '009-0001'", "Did you mean"]),
        ("quickstrat", ["unknown file 'quickstrat'", "Did you mean 'quickstart'?"]),
        ("net", ["net: does not say how it was trained"]),
        ("s3x://a/b", ["expected a folder or s3://"]),
        ("runs/a --agents cutmox", ["--agents: unknown agent 'cutmox'", "Did you mean 'cutmix'?"]),
        ("runs/a --agents cutmix+policy", ["--agents: got 'cutmix' before 'policy'", "policy+cutmix"]),
        ("runs/a --role student", ["--role: got 'student' without --agents"]),
        ("runs/a --epoch 2", ["--epoch: got 2; expected 0 to 1"]),
        ("runs/a --images 61", ["--images: got 61; expected at most 60"]),
        ("runs/a --schedule gone.yaml", ["gone.yaml: no such file"]),
        ("runs/a --set data.source=parquet --set data.path=gone", ["data.path: no such folder"]),
        ("runs/a -o picture.jpg", ["--output: got 'picture.jpg'; expected a name that ends with .png"]),
    ],
)
def test_refusals(words, said):
    assert_refused(lambda: rolekd(f"views -o z.png {words}"), *said)
