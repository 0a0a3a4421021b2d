"""Real and made images for the augmentation tests."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photographs(shared_data: Path) -> torch.Tensor:
    """The first 200 CIFAR-10 test images, (200, 3, 32, 32) uint8."""
    rows = next(pq.ParquetFile(shared_data / "cifar10" / "test.parquet").iter_batches(200, columns=["img"]))
    images = [Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows.column("img").to_pylist()]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def fill() -> torch.Tensor:
    return torch.tensor([125, 123, 114], dtype=torch.uint8)
