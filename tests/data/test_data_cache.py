import json
import logging
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rolekd_ray.data import load_image_set
from rolekd_ray.data.cache import cache_folder, cached, entry_name


def builder(images: np.ndarray, calls: list[int]):
    def build(allocate):
        calls.append(1)
        array = allocate(images.shape)
        array[:] = images
        return array, np.arange(len(images)), ("a", "b")

    return build


IMAGES = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), dtype=np.uint8)


def test_second_time_is_not_decoded_again(cache):
    calls: list[int] = []
    first, second = (cached("some", "entry", builder(IMAGES, calls)) for _ in range(2))
    assert len(calls) == 1
    for found in (first, second):
        assert torch.equal(found.images, torch.from_numpy(IMAGES)) and found.images.dtype == torch.uint8
        assert found.labels.tolist() == list(range(50)) and found.labels.dtype == torch.int64
        assert found.class_names == ("a", "b") and found.name == "some"
    assert sorted(file.name for file in cache.iterdir()) == ["entry", "entry.lock"]


def test_cached_set_equals_the_fresh_one(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path))
    fresh = load_image_set("digits", None, split="test")
    again = load_image_set("digits", None, split="test")
    assert torch.equal(fresh.images, again.images) and torch.equal(fresh.labels, again.labels)
    assert fresh.class_names == again.class_names and fresh.name == again.name == "digits test"


def test_writing_to_the_images_does_not_reach_the_file():
    cached("some", "entry", builder(IMAGES, [])).images.fill_(7)
    assert torch.equal(cached("some", "entry", builder(IMAGES, [])).images, torch.from_numpy(IMAGES))


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "images.npy").unlink(),
        lambda entry: os.truncate(entry / "images.npy", 1000),
        lambda entry: os.truncate(entry / "images.npy", 0),
        lambda entry: flip_a_byte(entry / "images.npy"),
        lambda entry: flip_a_byte(entry / "labels.npy"),
        lambda entry: (entry / "images.npy").write_bytes(b"no array" * 100),
        lambda entry: (entry / "entry.json").write_text("{"),
        lambda entry: (entry / "entry.json").write_text("[]"),
        lambda entry: (entry / "entry.json").write_bytes(b"\xff\xfe"),
        lambda entry: (entry / "entry.json").write_text(json.dumps({"class_names": ["a"]})),
    ],
)
def test_damaged_entry_is_rebuilt(cache, caplog, damage):
    calls: list[int] = []
    cached("some", "entry", builder(IMAGES, calls))
    damage(cache / "entry")
    with caplog.at_level(logging.WARNING):
        found = cached("some", "entry", builder(IMAGES, calls))
    assert len(calls) == 2 and "damaged" in caplog.text
    assert torch.equal(found.images, torch.from_numpy(IMAGES))
    cached("some", "entry", builder(IMAGES, calls))
    assert len(calls) == 2  # sound again


def test_failed_build_leaves_nothing(cache):
    def build(allocate):
        allocate((10, 1, 2, 2))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cached("some", "entry", build)
    assert [file.name for file in cache.iterdir()] == ["entry.lock"]


def test_left_overs_of_a_killed_process_are_removed(cache):
    (cache / ".entry.x1").mkdir()
    cached("some", "entry", builder(IMAGES, []))
    assert not (cache / ".entry.x1").exists()


def test_cache_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROLEKD_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        found = cached("some", "entry", builder(IMAGES, []))
    assert torch.equal(found.images, torch.from_numpy(IMAGES)) and "ROLEKD_CACHE" in caplog.text


def test_full_disk_is_a_warning(monkeypatch, caplog):
    def full(handle, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)  # the only part of a full disk that a test can have
    with caplog.at_level(logging.WARNING):
        found = cached("some", "entry", builder(IMAGES, []))
    assert torch.equal(found.images, torch.from_numpy(IMAGES)) and "No space left" in caplog.text


def test_entry_name_follows_settings_and_files(tmp_path):
    def name(file: str, content: str, size: int = 1, nanoseconds: int = 5) -> str:
        (tmp_path / file).write_text(content)
        os.utime(tmp_path / file, ns=(0, nanoseconds))
        return entry_name("d", {"size": size}, [tmp_path / file])

    first = name("a", "x")
    others = [name("a", "x", size=2), name("b", "x"), name("a", "xy"), name("a", "x", nanoseconds=6)]
    assert len({first, *others}) == 5
    assert name("a", "x") == first


def test_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("ROLEKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rolekd_ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rolekd_ray"


def _decode_slowly(cache: str, log: str) -> None:
    os.environ["ROLEKD_CACHE"] = cache

    def build(allocate):
        with open(log, "a") as file:
            file.write("decoded\n")
        array = allocate(IMAGES.shape)
        time.sleep(0.3)
        array[:] = IMAGES
        return array, np.arange(len(IMAGES)), ("a", "b")

    assert torch.equal(cached("some", "entry", build).images, torch.from_numpy(IMAGES))


def test_processes_that_start_together_decode_once(cache, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_decode_slowly, args=(str(cache), str(tmp_path / "log"))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "decoded\n"


def _memory() -> dict[str, int]:
    """Kilobytes of this process's mapping of the images, by kind."""
    sizes: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith("images.npy")
        elif inside and line.endswith("kB"):
            sizes[line.split(":")[0]] = sizes.get(line.split(":")[0], 0) + int(line.split()[1])
    return sizes


def _open_and_hold(opened, done) -> None:
    images = cached("some", "entry", None).images  # no builder: it must be there
    opened.set()
    done.wait(60)
    del images


def _open_and_measure(opened, results) -> None:
    assert opened.wait(60)
    images = cached("some", "entry", None).images.numpy()
    results.put(_memory())
    images += 1
    results.put(_memory())


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc/self/smaps")
def test_a_second_process_holds_no_copy_of_its_own():
    images = np.random.default_rng(1).integers(0, 256, (4000, 3, 32, 32), dtype=np.uint8)  # 12 MB
    kilobytes = images.nbytes // 1024
    cached("some", "entry", builder(images, []))
    context = multiprocessing.get_context("fork")
    opened, done, results = context.Event(), context.Event(), context.Queue()
    first = context.Process(target=_open_and_hold, args=(opened, done))
    second = context.Process(target=_open_and_measure, args=(opened, results))
    for process in (first, second):
        process.start()
    read, written = results.get(timeout=60), results.get(timeout=60)
    done.set()
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    assert read["Rss"] >= kilobytes  # every page is there,
    assert read["Pss"] < 0.55 * kilobytes  # each half ours, since the first process maps it too,
    assert read["Private_Dirty"] + read["Private_Clean"] + read["Anonymous"] < 64  # and none a copy
    assert written["Private_Dirty"] > 0.9 * kilobytes  # the measurement can fail: a process that writes has its copy
