import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import datasets

from rolekd_ray.data import load_image_set
from rolekd_ray.errors import DataError


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def message(*args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        load_image_set(*args, **kwargs)
    return str(caught.value)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


# ---- Parquet


@pytest.mark.parametrize("image_column", ["img", "image"])
@pytest.mark.parametrize("label_column", ["label", "fine_label"])
@pytest.mark.parametrize("plain", [False, True])
def test_parquet_conventions(tmp_path, pixels, write_parquet, image_column, label_column, plain):
    write_parquet(
        tmp_path / "train.parquet",
        [png(image) for image in pixels],
        [0, 1, 2, 0, 1, 2],
        image_column=image_column,
        label_column=label_column,
        plain=plain,
        names=["a", "b", "c"],
    )
    found = load_image_set("parquet", tmp_path, split="train")
    assert torch.equal(found.images, as_tensor(pixels)) and found.images.dtype == torch.uint8
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2] and found.labels.dtype == torch.int64
    assert found.class_names == ("a", "b", "c") and found.image_size == (4, 5)


def test_parquet_files_of_a_split_follow_their_names(tmp_path, pixels, write_parquet):
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [png(image) for image in pixels[2:]], [0, 0, 1, 1])
    write_parquet(
        tmp_path / "train-00000-of-00002.parquet", [png(image) for image in pixels[:2]], [2, 3], row_group_size=1
    )
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [png(pixels[0])], [1])
    found = load_image_set("parquet", tmp_path, split="train")
    assert torch.equal(found.images, as_tensor(pixels)) and found.labels.tolist() == [2, 3, 0, 0, 1, 1]


def test_classes_without_names_are_those_of_both_splits(tmp_path, pixels, write_parquet):
    write_parquet(tmp_path / "train.parquet", [png(pixels[0])] * 3, [0, 1, 4])
    write_parquet(tmp_path / "test.parquet", [png(pixels[0])] * 2, [0, 2])
    for split in ("train", "test"):
        assert load_image_set("parquet", tmp_path, split=split).class_names == ("0", "1", "2", "3", "4")


def test_changed_file_is_decoded_again(tmp_path, pixels, write_parquet):
    write_parquet(tmp_path / "train.parquet", [png(pixels[0])], [0])
    load_image_set("parquet", tmp_path, split="train")
    write_parquet(tmp_path / "train.parquet", [png(image) for image in pixels], [0] * 6)
    assert len(load_image_set("parquet", tmp_path, split="train")) == 6


def test_real_photographs(cifar_slice):
    found = load_image_set("parquet", cifar_slice, split="train")
    assert found.images.shape == (300, 3, 32, 32) and found.class_names[:2] == ("airplane", "automobile")
    rows = pq.read_table(cifar_slice / "train.parquet").to_pylist()
    for i in (0, 17, 299):
        expected = np.asarray(Image.open(io.BytesIO(rows[i]["img"]["bytes"])).convert("RGB"))
        assert (
            np.array_equal(found.images[i].permute(1, 2, 0).numpy(), expected) and found.labels[i] == rows[i]["label"]
        )


@pytest.mark.slow
def test_the_whole_of_cifar10(shared_data):
    train = load_image_set("parquet", shared_data / "cifar10", split="train")
    assert train.images.shape == (50000, 3, 32, 32) and train.labels.bincount().tolist() == [5000] * 10
    mean, deviation = train.statistics()
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3)  # published, of the lossless images
    assert torch.allclose(deviation, torch.tensor([0.2470, 0.2435, 0.2616]), atol=3e-3)


# ---- folders of pictures


def write_folder(root, pictures: dict[str, np.ndarray]) -> None:
    for name, image in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)


def test_image_folder_agrees_with_torchvision(tmp_path, pixels):
    names = ["train/b/2.png", "train/b/1.png", "train/a/x/deep.png", "train/c/1.PNG", "test/c/1.png", "test/a/1.png"]
    write_folder(tmp_path, dict(zip(names, pixels, strict=True)))
    (tmp_path / "train" / "a" / "notes.txt").write_text("no picture")
    train = load_image_set("image_folder", tmp_path, split="train")
    reference = datasets.ImageFolder(tmp_path / "train")
    assert train.class_names == tuple(reference.classes) == ("a", "b", "c")
    assert train.labels.tolist() == reference.targets
    for image, (expected, _) in zip(train.images, reference, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
    test = load_image_set("image_folder", tmp_path, split="test")  # has no class b; c keeps its number
    assert test.labels.tolist() == [0, 2] and test.class_names == train.class_names


def test_image_folder_errors(tmp_path, pixels):
    assert "no folder of split 'train'" in message("image_folder", tmp_path, split="train")
    (tmp_path / "train").mkdir()
    assert "no pictures" in message("image_folder", tmp_path, split="train")
    (tmp_path / "train" / "a").mkdir()
    assert "no pictures" in message("image_folder", tmp_path, split="train")
    write_folder(tmp_path, {"train/a/1.png": pixels[0], "test/z/1.png": pixels[0]})
    assert "got classes z; expected those of train: a" in message("image_folder", tmp_path, split="test")
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"nonsense")
    assert "a/2.png: not a picture" in message("image_folder", tmp_path, split="train")


# ---- colour and size


def test_grey_only_if_all_are_grey(tmp_path, pixels):
    grey = pixels[..., 0]
    write_folder(
        tmp_path,
        {"train/a/1.png": grey[0], "train/a/2.png": grey[1], "test/a/1.png": grey[0], "test/a/2.png": pixels[1]},
    )
    train = load_image_set("image_folder", tmp_path, split="train")
    assert train.channels == 1 and torch.equal(train.images[:, 0], torch.from_numpy(grey[:2]))
    test = load_image_set("image_folder", tmp_path, split="test")
    assert test.channels == 3
    assert torch.equal(test.images[0], torch.from_numpy(grey[0]).expand(3, -1, -1))
    assert torch.equal(test.images[1], as_tensor(pixels)[1])


def test_image_size_scales_the_short_side_and_crops_the_centre(tmp_path):
    columns = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 40, 0)  # 60 wide, 40 high: a ramp
    write_folder(tmp_path, {"train/a/1.png": columns, "train/a/2.png": columns.T[:40].copy()})
    found = load_image_set("image_folder", tmp_path, split="train", image_size=20)
    assert found.images.shape == (2, 1, 20, 20)
    # Halved, then columns 5..24 of 30: the ramp of the middle, 8 levels a pixel.
    expected = 8 * torch.arange(5, 25) + 2
    assert (found.images[0, 0].int() - expected).abs().max() <= 1


def test_image_size_of_the_pictures_changes_nothing(tmp_path, pixels):
    write_folder(tmp_path, {"train/a/1.png": pixels[0][:4, :4]})
    assert torch.equal(
        load_image_set("image_folder", tmp_path, split="train", image_size=4).images,
        load_image_set("image_folder", tmp_path, split="train").images,
    )


def test_differing_sizes_name_the_first_odd_one(tmp_path, pixels, write_parquet):
    pictures = [png(pixels[0]), png(pixels[1]), png(pixels[2][:3]), png(pixels[3][:2])]
    file = write_parquet(tmp_path / "train.parquet", pictures, [0, 0, 0, 0])
    text = message("parquet", tmp_path, split="train")
    assert f"{file} row 2: got 5x3 pixels; expected 5x4" in text and "image_size" in text
    assert load_image_set("parquet", tmp_path, split="train", image_size=4).image_size == (4, 4)


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "CMYK", "1"])
def test_modes_become_grey_or_rgb(tmp_path, pixels, mode):
    picture = Image.fromarray(pixels[0]).convert(mode)
    (tmp_path / "train" / "a").mkdir(parents=True)
    file = tmp_path / "train" / "a" / ("1.tiff" if mode == "CMYK" else "1.png")
    picture.save(file)
    found = load_image_set("image_folder", tmp_path, split="train").images[0]
    expected = np.asarray(Image.open(file).convert("L" if mode == "1" else "RGB"))
    assert np.array_equal(found.permute(1, 2, 0).squeeze(-1).numpy(), expected)


def test_deep_pixels_are_refused(tmp_path):
    write_folder(tmp_path, {"train/a/1.png": np.full((4, 4), 1000, dtype=np.uint16)})
    assert "expected 8 bits" in message("image_folder", tmp_path, split="train")


# ---- what can be wrong


@pytest.mark.parametrize("label", [[0, 3], [0, -1], [0, None], [0.0, 1.5], ["0", "1"], [True, False], [[0], [1]]])
def test_wrong_labels(tmp_path, pixels, write_parquet, label):
    file = write_parquet(tmp_path / "train.parquet", [png(pixels[0])] * 2, label, names=["a", "b", "c"])
    text = message("parquet", tmp_path, split="train")
    assert str(file) in text and (
        "expected 0..2" in text or "expected whole number" in text or "expected a whole" in text
    )
    assert label not in ([0, 3], [0, -1], [0, None]) or "row 1" in text


def test_whole_floats_are_labels(tmp_path, pixels, write_parquet):
    write_parquet(tmp_path / "train.parquet", [png(pixels[0])] * 2, [0.0, 1.0])
    assert load_image_set("parquet", tmp_path, split="train").labels.tolist() == [0, 1]


def test_wrong_parquet_files(tmp_path, pixels, write_parquet):
    assert "no file of split 'test', got nothing" in message("parquet", tmp_path, split="test")
    file = write_parquet(tmp_path / "train.parquet", [], pa.array([], pa.int64()))
    assert "no file of split 'test', got train.parquet" in message("parquet", tmp_path, split="test")
    assert "no rows" in message("parquet", tmp_path, split="train")
    write_parquet(file, [png(pixels[0])], [0], image_column="picture")
    assert "no image column, got picture, label; expected img or image" in message("parquet", tmp_path, split="train")
    write_parquet(file, [png(pixels[0])], [0], label_column="class")
    assert "no label column, got img, class; expected label or fine_label" in message(
        "parquet", tmp_path, split="train"
    )
    write_parquet(file, [png(pixels[0]), b"nonsense"], [0, 0])
    assert f"{file} row 1: not a picture" in message("parquet", tmp_path, split="train")
    write_parquet(file, [png(pixels[0]), png(pixels[0])[:-30]], [0, 0])
    assert f"{file} row 1: not a picture" in message("parquet", tmp_path, split="train")
    write_parquet(file, [png(pixels[0]), None], [0, 0])
    assert f"{file} row 1: got no picture's bytes" in message("parquet", tmp_path, split="train")
    pq.write_table(pa.table({"img": [1, 2], "label": [0, 0]}), file)
    assert f"{file} row 0: got no picture's bytes" in message("parquet", tmp_path, split="train")


def test_corrupt_parquet_files(tmp_path, pixels, write_parquet):
    file = tmp_path / "train.parquet"
    file.write_bytes(b"PAR1 is not enough")
    assert f"{file}: not a Parquet file" in message("parquet", tmp_path, split="train")
    write_parquet(file, [png(image) for image in pixels], [0] * 6, compression="none", write_page_checksum=True)
    data = bytearray(file.read_bytes())
    file.write_bytes(data[: len(data) // 2])
    assert f"{file}: not a Parquet file" in message("parquet", tmp_path, split="train")
    data[data.index(b"IDAT") + 20] ^= 1  # one bit of one picture: the page's checksum tells
    file.write_bytes(data)
    assert f"{file}: damaged" in message("parquet", tmp_path, split="train")


def test_wrong_arguments(tmp_path):
    assert "Did you mean 'cifar10'?" in message("cifar_10", tmp_path, split="train")
    assert "data.path: got none" in message("parquet", None, split="train")
    assert "bundled" in message("digits", tmp_path, split="train")
    assert "no such folder" in message("parquet", tmp_path / "nowhere", split="train")
    text = message("parquet", None, split="training", image_size=0)
    assert "split" in text and "image_size" in text and "path" in text and len(text.splitlines()) == 3
