"""The readers of published data sets, on small files in those sets' own formats (the real ones are a download)."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from torchvision import datasets

from rolekd_ray.data import load_image_set
from rolekd_ray.errors import DataError

RNG = np.random.default_rng(0)


def md5(file) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def write_idx(file, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_fashion(root, images: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> None:
    for split, stem in (("train", "train"), ("test", "t10k")):
        raw = root / "FashionMNIST" / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", images[split])
        write_idx(raw / f"{stem}-labels-idx1-ubyte", labels[split])


def test_fashion_mnist(tmp_path):
    images = {split: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for split, n in (("train", 12), ("test", 5))}
    labels = {split: (np.arange(len(images[split])) % 10).astype(np.uint8) for split in images}
    write_fashion(tmp_path, images, labels)
    for split in ("train", "test"):
        found = load_image_set("fashion_mnist", tmp_path, split=split)
        assert torch.equal(found.images, torch.from_numpy(images[split])[:, None])
        assert found.labels.tolist() == labels[split].tolist()
        assert found.class_names[0] == "T-shirt/top" and found.num_classes == 10
    # The cache follows the split's own files.
    write_idx(tmp_path / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte", labels["test"] + 1)
    assert load_image_set("fashion_mnist", tmp_path, split="test").labels.tolist() == (labels["test"] + 1).tolist()
    small = load_image_set("fashion_mnist", tmp_path, split="test", image_size=14)
    assert small.images.shape == (5, 1, 14, 14)


@pytest.mark.parametrize(
    ("source", "kind", "key"), [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")]
)
def test_cifar(tmp_path, monkeypatch, source, kind, key):
    names = [f"class{i}" for i in range(10)]
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    images = RNG.integers(0, 256, (3, 6, 3, 32, 32), dtype=np.uint8)

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, md5(folder / name)]

    # Batch files in torchvision's format; their checksums take the place of the real files'.
    parts = [write(f"batch{i}", {"data": images[i].reshape(6, -1), key: [i, 1, 2, 3, 4, 9]}) for i in range(3)]
    meta = write("meta", {kind.meta["key"]: names})
    monkeypatch.setattr(kind, "train_list", parts[:2])
    monkeypatch.setattr(kind, "test_list", parts[2:])
    monkeypatch.setattr(kind, "meta", {"filename": meta[0], "key": kind.meta["key"], "md5": meta[1]})
    train = load_image_set(source, tmp_path, split="train")
    assert torch.equal(train.images, torch.from_numpy(images[:2].reshape(12, 3, 32, 32)))
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 9, 1, 1, 2, 3, 4, 9] and train.class_names == tuple(names)
    test = load_image_set(source, tmp_path, split="test")
    assert torch.equal(test.images, torch.from_numpy(images[2])) and test.name == f"{source} test"
    (folder / "batch2").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"data\.download"):
        load_image_set(source, tmp_path, split="test")


def test_svhn(tmp_path, monkeypatch):
    scipy_io = pytest.importorskip("scipy.io", reason="torchvision reads SVHN by way of scipy")
    images = RNG.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    scipy_io.savemat(tmp_path / "test_32x32.mat", {"X": images, "y": np.array([[10], [1], [9], [10]], dtype=np.uint8)})
    entry = ["", "test_32x32.mat", md5(tmp_path / "test_32x32.mat")]
    monkeypatch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, "test": entry})
    found = load_image_set("svhn", tmp_path, split="test")
    assert torch.equal(found.images, torch.from_numpy(images.transpose(3, 2, 0, 1).copy()))
    assert found.labels.tolist() == [0, 1, 9, 0] and found.class_names == tuple("0123456789")


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "svhn", "fashion_mnist"])
def test_missing_download_says_how_to_switch_it_on(tmp_path, source):
    for split in ("train", "test"):
        with pytest.raises(DataError, match=r"data\.download") as caught:
            load_image_set(source, tmp_path, split=split)
        assert str(tmp_path) in str(caught.value) and source in str(caught.value)
    assert not list(tmp_path.iterdir())  # nothing was fetched


def test_failed_download_is_an_error_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nobody listens there
    with pytest.raises(DataError, match="fashion_mnist is not there or damaged"):
        load_image_set("fashion_mnist", tmp_path / "new", split="train", download=True)
