import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rolekd_ray.data import load_image_set
from rolekd_ray.data.sources import DIGITS

SCRIPT = Path(__file__).parents[2] / "launch" / "make_digits.py"


def test_bundled_digits():
    train, test = (load_image_set("digits", None, split=split) for split in ("train", "test"))
    assert train.images.shape == (1197, 1, 8, 8) and test.images.shape == (600, 1, 8, 8)
    assert train.class_names == test.class_names == tuple("0123456789")
    for images in (train, test):
        counts = images.labels.bincount(minlength=10) / len(images)
        assert counts.min() > 0.09 and counts.max() < 0.11
        assert images.images.min() == 0 and images.images.max() == 255


def test_no_digit_is_in_both_splits():
    paths = [row["path"] for split in ("train", "test") for row in column(split, "image")]
    assert len(set(paths)) == 1797


def column(split: str, name: str) -> list:
    return pq.read_table(DIGITS / f"{split}.parquet").column(name).to_pylist()


def test_source_and_licence_travel_with_the_file():
    for split in ("train", "test"):
        metadata = pq.read_schema(DIGITS / f"{split}.parquet").metadata
        assert b"Alpaydin" in metadata[b"source"] and b"CC BY 4.0" in metadata[b"licence"]
        assert json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["_type"] == "ClassLabel"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install rolekd_ray[digits]")
    return runpy.run_path(str(SCRIPT))


def test_script_makes_the_bundled_files(script, tmp_path):
    for turn in ("first", "second"):
        (tmp_path / turn).mkdir()
        script["make"](tmp_path / turn)
    for split in ("train", "test"):
        first, second, bundled = (
            folder / f"{split}.parquet" for folder in (tmp_path / "first", tmp_path / "second", DIGITS)
        )
        assert first.read_bytes() == second.read_bytes()
        ours, theirs = pq.read_schema(first).metadata, pq.read_schema(bundled).metadata
        if ours == theirs:  # made with the same versions of pyarrow and Pillow
            assert first.read_bytes() == bundled.read_bytes()
        assert {**ours, b"made_with": b""} == {**theirs, b"made_with": b""}
        made, shipped = (
            load_image_set("parquet", tmp_path / "first", split=split),
            load_image_set("digits", None, split=split),
        )
        assert torch.equal(made.images, shipped.images) and torch.equal(made.labels, shipped.labels)


def test_values_are_those_of_scikit_learn(script):
    from sklearn.datasets import load_digits

    digits = load_digits()
    for split in ("train", "test"):
        rows = [int(row["path"][7:11]) for row in column(split, "image")]
        images = load_image_set("digits", None, split=split)
        restored = np.rint(images.images[:, 0].numpy() / 255 * 16)  # the scaling loses nothing
        assert np.array_equal(restored, digits.images[rows])
        assert np.array_equal(images.labels.numpy(), digits.target[rows])
