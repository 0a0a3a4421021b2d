"""Folders like CIFAR-10-C: read as they lie, refused with all their problems."""

import pickle

import numpy as np
import pytest
import torch

from rolekd_ray.data.corrupted import open_corrupted
from rolekd_ray.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two corruptions of 4 images of 6x5 pixels in five severities, and a note that is no array."""
    rng = np.random.default_rng(0)
    for name in ("gaussian_noise", "fog"):
        np.save(tmp_path / f"{name}.npy", rng.integers(0, 256, (20, 5, 6, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.tile(np.array([3, 0, 9, 1], dtype=np.uint8), 5))
    (tmp_path / "README.txt").write_text("what this is")
    return tmp_path


def opened(folder, **other):
    return open_corrupted(folder, **({"num_classes": 10, "image_size": (5, 6)} | other))


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_severities_lie_one_after_the_other(folder, limit):
    sets = opened(folder)
    assert set(sets.pictures) == {"gaussian_noise", "fog"}
    for name in sets.pictures:
        rows = np.load(folder / f"{name}.npy")
        parts = list(sets.parts(name, limit))
        assert len(parts) == 5
        for severity, (images, labels) in enumerate(parts):
            assert images.shape == (min(limit, 4), 3, 5, 6) and images.dtype == torch.uint8
            assert labels.tolist() == [3, 0, 9, 1][:limit] and labels.dtype == torch.int64
            for n, image in enumerate(images.numpy()):
                for channel in range(3):
                    assert np.array_equal(image[channel], rows[4 * severity + n][:, :, channel])


def test_the_real_format_is_mapped_not_read(tmp_path):
    """50,000 images take 154 MB; the file here is sparse, and only what is asked for is read."""
    images = np.lib.format.open_memmap(tmp_path / "fog.npy", "w+", np.uint8, (50000, 32, 32, 3))
    images[-1] = 7
    del images
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10000) % 10, 5))
    sets = opened(tmp_path, image_size=(32, 32))
    assert isinstance(sets.pictures["fog"], np.memmap)
    parts = [(images[-1].unique().tolist(), len(labels)) for images, labels in sets.parts("fog", 10000)]
    assert parts == [([0], 10000)] * 4 + [([7], 10000)]


def test_nothing_there(tmp_path):
    for place in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match=f"{place}: got no corruptions; expected a folder with files like"):
            opened(place)
    np.save(tmp_path / "labels.npy", np.zeros(5, dtype=np.int64))
    with pytest.raises(DataError, match="got no corruptions"):
        opened(tmp_path)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("what lies in a file was run",))


def test_objects_in_a_file_are_not_loaded(folder):
    np.save(folder / "fog.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (folder / "labels.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError) as caught:
        opened(folder)
    assert len(caught.value.problems) == 2
    assert all("not an array that can be read" in problem for problem in caught.value.problems)


BROKEN = {
    "no labels": (lambda f: (f / "labels.npy").unlink(), r"labels.npy: got no such file; expected an array"),
    "labels of two axes": (
        lambda f: np.save(f / "labels.npy", np.zeros((20, 1), int)),
        r"labels.npy: got \(20, 1\) int64; expected \(5 M,\) of whole numbers",
    ),
    "labels that are no numbers of classes": (
        lambda f: np.save(f / "labels.npy", np.zeros(20)),
        r"labels.npy: got \(20,\) float64; expected \(5 M,\) of whole",
    ),
    "labels not in fives": (lambda f: np.save(f / "labels.npy", np.zeros(18, int)), r"labels.npy: got \(18,\) int64"),
    "none": (lambda f: np.save(f / "labels.npy", np.zeros(0, int)), r"labels.npy: got \(0,\) int64"),
    "labels of other classes": (
        lambda f: np.save(f / "labels.npy", np.arange(20)),
        r"labels.npy: got labels from 0 to 19; expected 0 to 9",
    ),
    "labels below 0": (lambda f: np.save(f / "labels.npy", np.arange(20) - 12), r"got labels from -12 to 7"),
    "fewer images": (
        lambda f: np.save(f / "fog.npy", np.zeros((19, 5, 6, 3), np.uint8)),
        r"fog.npy: got \(19, 5, 6, 3\) uint8; expected \(20, 5, 6, 3\) uint8",
    ),
    "channels first": (
        lambda f: np.save(f / "fog.npy", np.zeros((20, 3, 5, 6), np.uint8)),
        r"fog.npy: got \(20, 3, 5, 6\) uint8; expected \(20, 5, 6, 3\)",
    ),
    "floats": (lambda f: np.save(f / "fog.npy", np.zeros((20, 5, 6, 3))), r"fog.npy: got \(20, 5, 6, 3\) float64"),
    "a number": (lambda f: np.save(f / "fog.npy", np.uint8(3)), r"fog.npy: got \(\) uint8"),
    "cut short": (
        lambda f: (f / "fog.npy").write_bytes((f / "fog.npy").read_bytes()[:-1]),
        r"fog.npy: not an array that can be read",
    ),
    "empty": (lambda f: (f / "fog.npy").write_bytes(b""), r"fog.npy: not an array that can be read"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_wrong_is_said(folder, broken):
    breaks, said = BROKEN[broken]
    breaks(folder)
    with pytest.raises(DataError, match=said) as caught:
        opened(folder)
    assert len(caught.value.problems) == 1


def test_all_problems_at_once_and_other_image_sizes(folder):
    (folder / "labels.npy").unlink()
    with pytest.raises(DataError) as caught:
        opened(folder, image_size=(32, 32))
    assert [problem.split(": ")[0].split("/")[-1] for problem in caught.value.problems] == [
        "labels.npy", "fog.npy", "gaussian_noise.npy"
    ]  # fmt: skip
    assert "got (20, 5, 6, 3) uint8; expected (5 M, 32, 32, 3) uint8" in caught.value.problems[1]
