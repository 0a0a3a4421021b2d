"""Checkpoints: a folder with tensors (safetensors) and everything else (JSON). Reading one runs no code from it.

A checkpoint appears whole or not at all: in a folder it is written aside, brought to disk and renamed; in an object
store its JSON, which names and checks the tensors, is written last. Member states and finished networks share this
format.
"""

import json
import os
import re
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
from rolekd_ray.files import sync_folder
from rolekd_ray.storage import ObjectPath, Place, place

FORMAT = "rolekd.checkpoint/1"
TENSORS, DESCRIPTION = "tensors.safetensors", "checkpoint.json"
_OWN_CHECKSUM = "own_crc32"
_PLAIN_NAME = re.compile(r"[\w-]+(\.[\w-]+)*")
_TENSOR_MARK = "#tensor"  # text keys that begin with # are saved with a second one: no key of a tree can be this


def save_checkpoint(folder: Place, tree: Mapping[str, Any], description: Mapping[str, Any]) -> None:
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
    content = {
        "format": FORMAT,
        "description": description,
        "tree": skeleton,
        "size": len(data),
        "crc32": zlib.crc32(data),
    }
    if isinstance(folder, ObjectPath):
        _put(folder, data, content)
    else:
        _rename_in(folder, data, content)


def has_checkpoint(folder: Place) -> bool:
    """Whether a checkpoint appeared there; it may be damaged."""
    return (folder / DESCRIPTION).is_file()


def _put(folder: ObjectPath, data: bytes, content: dict[str, Any]) -> None:
    """Write tensors under a new name, then the JSON that names them: another writer of the folder is never torn.

    Tensors that no JSON names, of who was killed in between, go with the folder.
    """
    content = content | {"tensors": f"tensors-{uuid4().hex[:8]}.safetensors"}
    (folder / content["tensors"]).write_bytes(data)
    (folder / DESCRIPTION).write_bytes(_text(content))


def _rename_in(folder: Path, data: bytes, content: dict[str, Any]) -> None:
    aside = folder.parent / f".{folder.name}.{uuid4().hex[:8]}"
    replaced = aside.with_name(f"{aside.name}.old")
    try:
        aside.mkdir(parents=True)
        for name, part in ((TENSORS, data), (DESCRIPTION, _text(content))):
            with open(aside / name, "wb") as file:
                file.write(part)
                file.flush()
                os.fsync(file.fileno())
        if folder.is_dir() and not folder.is_symlink():
            os.replace(folder, replaced)  # a folder can only be renamed over an empty one; deleting it takes longer
        os.replace(aside, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise StorageError(f"{folder}: cannot write the checkpoint ({len(data):,} bytes): {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)


def read_description(folder: Place) -> dict[str, Any]:
    """Return what a checkpoint says about itself, without its tensors.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    return _read_json(place(folder))["description"]


def load_checkpoint(folder: Place) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (tree, description) of a checkpoint; tensors are on the CPU.

    Raises:
        CheckpointError: it is missing, damaged, or of another format.
    """
    folder = place(folder)
    content = _read_json(folder)
    file = folder / content.get("tensors", TENSORS)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    if len(data) != content["size"] or zlib.crc32(data) != content["crc32"]:
        raise CheckpointError(
            f"{file}: damaged, got {len(data):,} bytes with checksum {zlib.crc32(data):08x}; "
            f"expected {content['size']:,} with {content['crc32']:08x}"
        )
    try:
        tensors = load_tensors(data)
        return _with_tensors(content["tree"], tensors), content["description"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder}: damaged: {error}") from error


def _read_json(folder: Place) -> dict[str, Any]:
    file = folder / DESCRIPTION
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            raise CheckpointError(
                f"{folder}: not a checkpoint, {DESCRIPTION} is missing; expected one, as in a run's best/ or states/"
            ) from None
        raise CheckpointError(
            f"{folder}: no such checkpoint; expected a folder with {DESCRIPTION} and {TENSORS}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file}: format: got {got!r}; expected {FORMAT!r}")
    missing = {"description", "tree", "size", "crc32", _OWN_CHECKSUM} - content.keys()
    if missing:
        raise CheckpointError(f"{file}: damaged, lacks {', '.join(sorted(missing))}")
    expected = content.pop(_OWN_CHECKSUM)
    if _checksum(content) != expected:
        raise CheckpointError(f"{file}: damaged: its content does not have the checksum that it names")
    tensors = content.get("tensors", TENSORS)
    if not isinstance(tensors, str) or not _PLAIN_NAME.fullmatch(tensors):  # of unknown origin: "../../secret"
        raise CheckpointError(f"{file}: tensors: got {tensors!r}; expected the name of a file beside it")
    return content


def _text(content: Mapping[str, Any]) -> bytes:
    return json.dumps({**content, _OWN_CHECKSUM: _checksum(content)}).encode()


def _checksum(content: Mapping[str, Any]) -> int:
    """Return the CRC-32 of plain data's JSON text; reading the text and writing it again gives the same."""
    return zlib.crc32(json.dumps(content).encode())


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Move tensors out of a tree; whole-number keys (optimiser state) become marked text."""
    if isinstance(value, Tensor):
        while path in tensors:  # {"a/b": ..., "a": {"b": ...}}
            path += "'"
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR_MARK: path}
    if isinstance(value, Mapping):
        keyed = {_marked(key): item for key, item in value.items()}
        return {key: _without_tensors(item, f"{path}/{key}".lstrip("/"), tensors) for key, item in keyed.items()}
    if isinstance(value, list | tuple):
        return [_without_tensors(item, f"{path}/{i}".lstrip("/"), tensors) for i, item in enumerate(value)]
    assert value is None or isinstance(value, str | int | float | bool), f"{path}: cannot save {type(value)}"
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR_MARK}:
            return tensors[value[_TENSOR_MARK]]
        return {_unmarked(key): _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_tensors(item, tensors) for item in value]
    return value


def _marked(key: str | int) -> str:
    assert isinstance(key, str | int) and not isinstance(key, bool), f"cannot save the key {key!r}"
    return f"#{key}" if isinstance(key, int) or key.startswith("#") else str(key)


def _unmarked(key: str) -> str | int:
    if key.startswith("##"):
        return key[1:]
    return int(key[1:]) if key.startswith("#") else key
