"""Fixtures of the data tests: every test has a cache of its own, and real pictures in small files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ROLEKD_CACHE", str(folder))
    return folder


@pytest.fixture
def pixels() -> np.ndarray:
    """Six colour images of 5x4 pixels (width x height): (6, 4, 5, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write one Parquet file of encoded pictures and labels; `names` go to the metadata."""

    def write(
        file: Path,
        pictures: Sequence[object],
        labels: Sequence[object],
        *,
        image_column: str = "img",
        label_column: str = "label",
        names: list[str] | None = None,
        plain: bool = False,
        **options,
    ) -> Path:
        cells = list(pictures) if plain else [{"bytes": data, "path": None} for data in pictures]
        kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({image_column: pa.array(cells, kind), label_column: pa.array(labels)})
        if names is not None:
            features = {label_column: {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, **options)
        return file

    return write


@pytest.fixture
def cifar_slice(shared_data, tmp_path) -> Path:
    """The first 300 training and 200 test images of the real CIFAR-10, as a folder of Parquet."""
    for split, rows in (("train", 300), ("test", 200)):
        table = next(pq.ParquetFile(shared_data / "cifar10" / f"{split}.parquet").iter_batches(batch_size=rows))
        pq.write_table(pa.Table.from_batches([table]), tmp_path / f"{split}.parquet")
    return tmp_path
