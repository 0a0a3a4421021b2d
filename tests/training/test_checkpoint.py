import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import time
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import die_at, in_a_fork, same_tree, tiny_settings

from rolekd_ray.errors import CheckpointError, StorageError
from rolekd_ray.roles import Role
from rolekd_ray.training.checkpoint import DESCRIPTION, TENSORS, load_checkpoint, read_description, save_checkpoint
from rolekd_ray.training.learner import Learner, new_learner

TREE = {
    "epoch": 3,
    "networks": {"student": {"weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor(7)}},
    "optimizers": {"student": {"state": {0: {"buffer": torch.ones(3)}, 1: {"buffer": None}}, "rates": [0.1, True]}},
}
ABOUT = {"models": {"student": "resnet8"}, "mean": [0.25], "name": "é"}


@pytest.fixture
def saved(tmp_path) -> Path:
    save_checkpoint(tmp_path / "state", TREE, ABOUT)
    return tmp_path / "state"


def trained_learner(optimizer: str, steps: int = 2) -> Learner:
    """Real networks and optimisers of both roles after a few steps on random images."""
    learner = new_learner(
        tiny_settings(f"training.optimizer={optimizer}"),
        tuple(Role),
        num_classes=10,
        channels=1,
        device=torch.device("cpu"),
        key=0,
    )
    for step in range(steps):
        take_step(learner, step)
    learner.epoch = 5
    return learner


def take_step(learner: Learner, seed: int) -> None:
    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    for role, network in learner.networks.items():
        loss = network(images.contiguous(memory_format=torch.channels_last)).square().mean()
        learner.optimizers[role].zero_grad()
        loss.backward()
        learner.optimizers[role].step()


# ---- round trips


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learner_comes_back_and_goes_on_to_the_last_bit(tmp_path, optimizer):
    learner = trained_learner(optimizer)
    save_checkpoint(tmp_path / "state", learner.tree(), ABOUT)
    tree, description = load_checkpoint(tmp_path / "state")
    assert same_tree(tree, learner.tree())
    assert description == read_description(tmp_path / "state") == ABOUT
    back = trained_learner(optimizer, steps=0)
    back.load(tree, where="state")
    assert back.epoch == 5
    for one in (learner, back):
        take_step(one, 99)
    assert same_tree(back.tree(), learner.tree())


def test_tensors_can_be_read_without_this_project(saved):
    from safetensors.torch import load_file

    tensors = load_file(saved / TENSORS)
    assert torch.equal(tensors["networks/student/weight"], TREE["networks"]["student"]["weight"])


def tensors() -> st.SearchStrategy[torch.Tensor]:
    makers = [
        lambda: torch.tensor(float("nan")),
        lambda: torch.tensor([[1, -2], [3, 4]]),
        lambda: torch.empty(0, 3),
        lambda: torch.tensor([True, False]),
        lambda: torch.randn(5, generator=torch.Generator().manual_seed(1)).bfloat16(),
        lambda: torch.arange(6.0, dtype=torch.float64).view(2, 3).T,
        lambda: torch.arange(48.0).view(2, 2, 3, 4).contiguous(memory_format=torch.channels_last),
        lambda: torch.tensor([3.0]).expand(4),
        lambda: torch.arange(10, dtype=torch.uint8)[::3],
        lambda: torch.nn.Parameter(torch.ones(2)),
    ]
    return st.sampled_from(makers).map(lambda make: make())


LEAVES = tensors() | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
NAMES = st.text(max_size=3) | st.sampled_from(["a/b", "#", "#1", "##1", "#tensor", "a", "b", "/", "'"]) | st.integers()
TREES = st.dictionaries(
    NAMES,
    st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(tree=TREES)
def test_any_tree_comes_back(tree, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "any_tree"
    save_checkpoint(folder, tree, {"n": 1})
    assert same_tree(load_checkpoint(folder)[0], tree)


def test_names_that_would_meet_stay_apart(tmp_path):
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "#1": 1, 1: 2, "#tensor": "x"}
    save_checkpoint(tmp_path / "state", tree, {})
    assert same_tree(load_checkpoint(tmp_path / "state")[0], tree)


def test_loaded_tensors_can_be_written_to(saved):
    tree, _ = load_checkpoint(saved)
    tree["networks"]["student"]["weight"].add_(1)
    assert same_tree(load_checkpoint(saved)[0], TREE)


def test_saving_again_replaces_and_leaves_nothing_beside(saved):
    save_checkpoint(saved, {"new": torch.ones(2)}, {"n": 2})
    tree, description = load_checkpoint(saved)
    assert (list(tree), description) == (["new"], {"n": 2})
    assert os.listdir(saved.parent) == ["state"]
    assert sorted(os.listdir(saved)) == [DESCRIPTION, TENSORS]


# ---- damage


def refused(folder: Path, *names: str) -> str:
    """Check that loading is refused by an error that names the file; return the message."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert str(folder) in message and all(name in message for name in names), message
    return message


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_truncated_tensors(saved, left):
    data = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(data[:left])
    refused(saved, TENSORS, "damaged")


def test_more_bytes_than_there_should_be(saved):
    with open(saved / TENSORS, "ab") as file:
        file.write(b"\0")
    refused(saved, TENSORS, "damaged")


def test_one_flipped_byte_anywhere_in_the_tensors(saved):
    whole = (saved / TENSORS).read_bytes()
    for place in range(len(whole)):
        (saved / TENSORS).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(saved, TENSORS, "damaged")


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_one_flipped_byte_anywhere_in_the_description(saved, flip):
    whole = (saved / DESCRIPTION).read_bytes()
    survived = 0
    for place in range(len(whole)):
        (saved / DESCRIPTION).write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            tree, description = load_checkpoint(saved)
        except CheckpointError as error:
            assert str(saved) in str(error)
            continue
        survived += 1  # the case of a hexadecimal digit in an escape: another text, the same content
        assert same_tree(tree, TREE) and description == ABOUT
    assert survived < 10


@pytest.mark.parametrize("left", [0, 1, 50, -1])
def test_truncated_description(saved, left):
    text = (saved / DESCRIPTION).read_bytes()
    (saved / DESCRIPTION).write_bytes(text[:left])
    refused(saved, DESCRIPTION, "damaged")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"no JSON", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "expected 'rolekd.checkpoint/1'"),
        (b"3", "expected 'rolekd.checkpoint/1'"),
        (b'{"format": "rolekd.checkpoint/9"}', "got 'rolekd.checkpoint/9'; expected 'rolekd.checkpoint/1'"),
        (b'{"format": "rolekd.checkpoint/1", "tree": {}}', "lacks crc32, description, own_crc32, size"),
    ],
)
def test_description_of_something_else(saved, text, said):
    (saved / DESCRIPTION).write_bytes(text)
    for read in (load_checkpoint, read_description):
        with pytest.raises(CheckpointError, match=f"{saved}.*{DESCRIPTION}") as caught:
            read(saved)
        assert said in str(caught.value)


@pytest.mark.parametrize("name", [TENSORS, DESCRIPTION])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    refused(saved, name)


def test_a_missing_folder_a_file_and_a_foreign_folder(tmp_path):
    assert "no such checkpoint" in refused(tmp_path / "gone")
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    assert "no such checkpoint" in refused(tmp_path / "model.pt")
    (tmp_path / "foreign").mkdir()
    torch.save({"weight": torch.ones(2)}, tmp_path / "foreign" / "pytorch_model.bin")
    assert "not a checkpoint" in refused(tmp_path / "foreign")


def test_tensors_of_another_checkpoint(saved):
    other = saved.parent / "other"
    save_checkpoint(other, TREE | {"epoch": 4, "more": torch.ones(1)}, ABOUT)
    (saved / TENSORS).write_bytes((other / TENSORS).read_bytes())
    refused(saved, TENSORS, "damaged")


# ---- code hidden in a checkpoint


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def disguise(folder: Path, payload: bytes) -> None:
    """Put foreign bytes in place of the tensors, with size and checksums that fit."""
    content = json.loads((folder / DESCRIPTION).read_text())
    content |= {"size": len(payload), "crc32": zlib.crc32(payload)}
    del content["own_crc32"]
    content["own_crc32"] = zlib.crc32(json.dumps(content).encode())
    (folder / DESCRIPTION).write_text(json.dumps(content))
    (folder / TENSORS).write_bytes(payload)


def test_a_pickle_in_disguise_is_never_run(saved, tmp_path):
    marker = tmp_path / "was_run"
    torch.save({"weight": Evil(marker)}, tmp_path / "evil.pt")
    payloads = [pickle.dumps(Evil(marker)), (tmp_path / "evil.pt").read_bytes()]
    pickle.loads(payloads[0])
    assert marker.is_dir(), "the trap does not work"
    marker.rmdir()
    for payload in payloads:
        disguise(saved, payload)
        refused(saved, "damaged")
        (tmp_path / "file").write_bytes(payload)
        refused(tmp_path / "file")
        (tmp_path / "named").mkdir(exist_ok=True)
        for name in (DESCRIPTION, TENSORS):
            (tmp_path / "named" / name).write_bytes(payload)
        refused(tmp_path / "named", DESCRIPTION)
    assert not marker.exists()


@pytest.mark.parametrize(
    "tree", [{"#tensor": "gone"}, {"#tensor": []}, {"#tensor": None}, {"#x": 1}, {"a": {"#tensor": {}}}]
)
def test_a_tree_that_was_never_saved(saved, tree):
    content = json.loads((saved / DESCRIPTION).read_text()) | {"tree": tree}
    del content["own_crc32"]
    content["own_crc32"] = zlib.crc32(json.dumps(content).encode())
    (saved / DESCRIPTION).write_text(json.dumps(content))
    refused(saved, "damaged")


# ---- storage that fails


def test_a_file_size_limit_is_a_storage_error_and_nothing_half_written_stays(saved):
    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for folder in (saved, saved.parent / "new"):
            with pytest.raises(StorageError, match=f"{folder}: cannot write the checkpoint"):
                save_checkpoint(folder, {"big": torch.ones(100_000)}, {})

    assert in_a_fork(work) == 0
    assert os.listdir(saved.parent) == ["state"]
    assert same_tree(load_checkpoint(saved)[0], TREE)


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "rolekd_test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    save_checkpoint(small_disk / "state", TREE, ABOUT)
    big = {"big": torch.ones(1_000_000)}
    for name in ("state", "new"):
        with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
            save_checkpoint(small_disk / name, big, {})
    (small_disk / "filler").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
    with pytest.raises(StorageError):
        save_checkpoint(small_disk / "new", TREE, {})  # not even a page is free
    assert sorted(os.listdir(small_disk)) == ["filler", "state"]
    assert same_tree(load_checkpoint(small_disk / "state")[0], TREE)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file" / "state", tmp_path / "file"):
        with pytest.raises(StorageError, match=str(folder)):
            save_checkpoint(folder, TREE, {})
    assert (tmp_path / "file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["file"]


# ---- killed while saving

WRITING = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def outcome(folder: Path) -> int | None:
    """Which save is there: its number; None for nothing. Anything else fails."""
    if not folder.exists():
        return None
    tree, description = load_checkpoint(folder)
    number = description["number"]
    assert same_tree(tree, numbered(number))
    return number


def numbered(number: int, size: int = 50) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((size,), float(number)), "steps": torch.tensor(number)}


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_at_every_step_of_a_save(tmp_path, replacing):
    seen, call = [], 0
    while True:
        folder = tmp_path / str(call) / "state"
        if replacing:
            save_checkpoint(folder, numbered(1), {"number": 1})

        def work(folder=folder, call=call):
            die_at(call, WRITING, ".state.")
            save_checkpoint(folder, numbered(2), {"number": 2})

        status = in_a_fork(work)
        seen.append(outcome(folder))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if replacing and seen[-1] is None:  # between the two renames: both are whole, aside
            assert sorted(filter(None, map(outcome, folder.parent.iterdir()))) == [1, 2]
        save_checkpoint(folder, numbered(3), {"number": 3})  # what a dead process left is in nobody's way
        assert outcome(folder) == 3
        call += 1
    assert call >= 4 and seen[-1] == 2
    before = 1 if replacing else None
    assert seen[0] == before and seen == sorted(seen, key=[before, None, 2].index)  # old, then new, and no way back
    assert seen.count(None) <= 1 or not replacing


def test_killed_at_any_moment_of_a_save(tmp_path):
    folder, size = tmp_path / "state", 1_000_000
    save_checkpoint(folder, numbered(0, size), {"number": 0})

    def work():
        for number in range(1, 1000):
            save_checkpoint(folder, numbered(number, size), {"number": number})

    halves = 0
    for trial in range(10):
        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(1)
        time.sleep(0.02 + 0.0137 * trial)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        aside = [entry for entry in tmp_path.iterdir() if entry != folder]
        halves += bool(aside)
        if folder.exists():
            tree, description = load_checkpoint(folder)
            assert same_tree(tree, numbered(description["number"], size))
        else:
            assert len(aside) == 2  # between the two renames
    assert halves >= 2, "no kill hit a save under way; nothing was tested"


# ---- speed


def test_a_state_of_45_megabytes_loads_within_half_a_second(tmp_path):
    network = {f"layer{i}": torch.randn(512, 512, 3, 3) for i in range(5)}
    save_checkpoint(tmp_path / "state", {"networks": {"student": network}}, {})
    assert 45e6 < (tmp_path / "state" / TENSORS).stat().st_size < 50e6
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        load_checkpoint(tmp_path / "state")
        seconds.append(time.perf_counter() - started)
    print(f"47 MB state: loaded in {min(seconds):.3f} s")
    assert min(seconds) <= 0.5
