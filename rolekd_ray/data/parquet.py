"""Image sets in Parquet files, in the Hugging Face convention."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from rolekd_ray.data.decode import Listing, Source, open_picture
from rolekd_ray.errors import DataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")


def parquet(path: Path, split: str) -> Source:
    """Find a split in a folder of `train*.parquet` and `test*.parquet`, read in the order of their names.

    The image column is `img` or `image`: encoded pictures as binary, or as struct{bytes, path} with the bytes there.
    The label column is `label` or `fine_label`: whole numbers from 0. Class names come from the schema's `huggingface`
    metadata; without it the labels of both splits are counted and the names are "0", "1", ...

    Raises:
        DataError: no file of the split; on reading: a damaged or empty file, missing columns, wrong labels or pictures.
    """
    files = {name: tuple(sorted(path.glob(f"{name}*.parquet"))) for name in ("train", "test")}
    if not files[split]:
        there = ", ".join(sorted(file.name for file in path.glob("*"))[:8]) or "nothing"
        raise DataError(f"{path}: no file of split {split!r}, got {there}; expected {split}*.parquet")
    # The other split's files count: they may decide how many classes there are.
    return Source(files["train"] + files["test"], partial(_read, files, split))


def _read(files: dict[str, tuple[Path, ...]], split: str) -> Listing:
    tables = [(file, *_labels(file)) for file in files[split]]
    labels = np.concatenate([column for _, column, _ in tables])
    if not len(labels):
        raise DataError(f"{', '.join(map(str, files[split]))}: no rows; expected at least one image")
    names = next((names for _, _, names in tables if names), None)
    if names is None:
        other = [_labels(file)[0] for name in files if name != split for file in files[name]]
        names = tuple(str(label) for label in range(max(column.max(initial=0) for column in [labels, *other]) + 1))
    problems = [problem for file, column, _ in tables for problem in _out_of_range(file, column, len(names))]
    if problems:
        raise DataError(*problems)
    return Listing(names, labels, partial(_pictures, files[split]))


def _labels(file: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return a file's labels (N,) int64 and its class names, if it has them."""
    schema = _open(file).schema_arrow
    _column(file, schema, IMAGE_COLUMNS, "image")
    name = _column(file, schema, LABEL_COLUMNS, "label")
    column = _read_column(file, name)
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{file} row {row}: got no {name}; expected a whole number of at least 0")
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{file}: column {name!r}: got type {column.type}; expected whole numbers of at least 0")
    try:
        return column.cast(pa.int64()).to_numpy(), _class_names(schema, name)
    except pa.ArrowInvalid as problem:
        raise DataError(f"{file}: column {name!r}: {problem}; expected whole numbers of at least 0") from problem


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):  # no metadata, or of another shape: names are a convenience
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _out_of_range(file: Path, labels: np.ndarray, num_classes: int) -> Iterator[str]:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        yield f"{file} row {wrong[0]}: label out of range, got {labels[wrong[0]]}; expected 0..{num_classes - 1}"


def _pictures(files: tuple[Path, ...]) -> Iterator[tuple[str, Image.Image]]:
    for file in files:
        for row, cell in enumerate(_cells(file)):
            where = f"{file} row {row}"
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            if not isinstance(data, bytes):
                raise DataError(f"{where}: got no picture's bytes; expected binary, or a struct with binary in 'bytes'")
            yield where, open_picture(data, where)


def _cells(file: Path) -> Iterator[object]:
    table = _open(file)
    name = _column(file, table.schema_arrow, IMAGE_COLUMNS, "image")
    try:
        for batch in table.iter_batches(batch_size=1024, columns=[name]):  # in parts: pictures may not fit in memory
            yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{file}: damaged: {problem}") from problem


def _column(file: Path, schema: pa.Schema, names: tuple[str, ...], what: str) -> str:
    found = next((name for name in names if name in schema.names), None)
    if found is None:
        raise DataError(f"{file}: no {what} column, got {', '.join(schema.names)}; expected {' or '.join(names)}")
    return found


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)  # where the file has checksums
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{file}: not a Parquet file that can be read: {problem}") from problem


def _read_column(file: Path, name: str) -> pa.ChunkedArray:
    try:
        return _open(file).read(columns=[name]).column(0)
    except (pa.ArrowException, OSError) as problem:
        raise DataError(f"{file}: damaged: {problem}") from problem
