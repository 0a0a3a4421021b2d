"""Checkpoints: a folder with tensors (safetensors) and everything else (JSON). Reading one runs no code from it.

A checkpoint appears whole or not at all: it is written aside, brought to disk and renamed. Member states and finished
networks share this format.
"""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from rolekd_ray.errors import CheckpointError, StorageError

FORMAT = "rolekd.checkpoint/1"
TENSORS, DESCRIPTION = "tensors.safetensors", "checkpoint.json"
_TENSOR_MARK = "__tensor__"


def save_checkpoint(folder: Path, tree: Mapping[str, Any], description: Mapping[str, Any]) -> None:
    """Write a checkpoint; an existing one at `folder` is replaced.

    Args:
        folder: where it will appear.
        tree: nested dicts (keys of text or whole numbers), lists and tuples (come back as lists) of tensors and plain
            values: networks, optimisers, generators.
        description: plain data about it: architecture, policies, metrics.

    Raises:
        StorageError: the storage is full or cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _without_tensors(tree, "", tensors)
    data = save_tensors(tensors)
    text = json.dumps(
        {"format": FORMAT, "description": description, "tree": skeleton, "size": len(data), "crc32": zlib.crc32(data)}
    )
    aside = folder.parent / f".{folder.name}.{uuid4().hex[:8]}"
    try:
        aside.mkdir(parents=True)
        for name, content in ((TENSORS, data), (DESCRIPTION, text.encode())):
            with open(aside / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)  # only finished networks are ever written twice, never a member's state
        os.replace(aside, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(f"{folder}: cannot write the checkpoint ({len(data):,} bytes): {error.strerror}") from error


def read_description(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says about itself, without its tensors.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    return _read_json(Path(folder))["description"]


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (tree, description) of a checkpoint; tensors are on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    folder = Path(folder)
    content = _read_json(folder)
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / TENSORS}: cannot be read: {error.strerror}") from error
    if len(data) != content["size"] or zlib.crc32(data) != content["crc32"]:
        raise CheckpointError(
            f"{folder / TENSORS}: damaged, got {len(data):,} bytes with checksum {zlib.crc32(data):08x}; "
            f"expected {content['size']:,} with {content['crc32']:08x}"
        )
    try:
        tensors = load_tensors(data)
        return _with_tensors(content["tree"], tensors), content["description"]
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from error


def _read_json(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint; expected a folder with {DESCRIPTION} and {TENSORS}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a checkpoint, {DESCRIPTION} is missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file}: format: got {got!r}; expected {FORMAT!r}")
    missing = {"description", "tree", "size", "crc32"} - content.keys()
    if missing:
        raise CheckpointError(f"{file}: damaged, lacks {', '.join(sorted(missing))}")
    return content


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of a tree; whole-number keys (optimiser state) become marked text."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", memory_format=torch.contiguous_format).clone()
        return {_TENSOR_MARK: path}
    if isinstance(value, Mapping):
        keyed = {f"#{key}" if isinstance(key, int) else str(key): item for key, item in value.items()}
        return {key: _without_tensors(item, f"{path}/{key}".lstrip("/"), tensors) for key, item in keyed.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{path}/{i}".lstrip("/"), tensors) for i, item in enumerate(value)]
    assert value is None or isinstance(value, str | int | float | bool), f"{path}: cannot save {type(value)}"
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR_MARK}:
            return tensors[value[_TENSOR_MARK]]
        return {int(k[1:]) if k.startswith("#") else k: _with_tensors(item, tensors) for k, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value
