"""Reading and writing small files so that nobody ever sees half of one."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rolekd_ray.errors import InputError, StorageError
from rolekd_ray.storage import ObjectPath, Place

_SHORT_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Name the path when the system refuses to write: disk full, read-only, not a folder.

    Raises:
        StorageError: in place of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to disk: a rename may otherwise be lost though the file's content is not."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Place, content: str | bytes) -> None:
    """Write a file whole or not at all: aside first, then renamed over `path`; on disk when this returns.

    An object is whole by itself.

    Raises:
        StorageError: it could not be written; what was there is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)  # mkstemp gives 0600; colleagues share run directories
            os.replace(aside, path)
            sync_folder(path.parent)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise


def delete_tree(folder: Place) -> None:
    """Delete a folder, or all objects below a prefix; what a folder's filesystem refuses to delete stays."""
    if isinstance(folder, ObjectPath):
        folder.delete_below()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def read_text(path: Place, error: type[InputError] = InputError) -> str:
    """Return a text file's content.

    Raises:
        error: it is missing, a folder, or not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except IsADirectoryError:
        raise error(f"{path}: cannot be read as text: it is a directory; expected a file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: cannot be read as text: {problem}") from problem


def parse_yaml(text: str, *, where: str, error: type[InputError] = InputError) -> Any:
    """Parse YAML into plain data; never runs code.

    PyYAML reads `1e-5` as text (YAML 1.1 wants `1.0e-5`); here it is the number that everybody means.

    Raises:
        error: the text is not YAML, or a key stands twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    def mapping(loader, node, deep=False):
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # `<<: *base`
        keys = [loader.construct_object(key, deep=True) for key in own]
        twice = {repr(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.MarkedYAMLError(
                problem=f"key {', '.join(sorted(twice))} stands twice", problem_mark=node.start_mark
            )
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: mapping(loader, node, deep=True))
    Loader.add_implicit_resolver(*_SHORT_FLOAT)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as problem:
        detail = " ".join(str(problem).split())
        raise error(f"{where}: not valid YAML: {detail}") from problem


def read_yaml(path: Place, error: type[InputError] = InputError) -> Any:
    """Return a YAML file's data; see `parse_yaml`."""
    return parse_yaml(read_text(path, error), where=str(path), error=error)


def dump_yaml(data: object) -> str:
    """Return YAML text in the order of the data, flow style for short leaves; `parse_yaml` gives the data back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_implicit_resolver(*_SHORT_FLOAT)  # so that the text "1e5" is quoted
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
