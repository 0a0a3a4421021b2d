"""Decode once: image sets in memory-mapped files that the processes of a machine share.

One folder per entry: `images.npy`, `labels.npy` and `entry.json`. It is written aside, then renamed; its name holds a
digest of everything the content depends on, so an entry is never out of date, only unused.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from rolekd_ray.data.images import ImageSet
from rolekd_ray.progress import advance

FORMAT = 1
WAIT_SECONDS = 5.0
_log = logging.getLogger(__name__)

# Fills an entry: gets a function that makes the images' array, returns (images, labels, class names).
Allocate = Callable[[tuple[int, ...]], np.ndarray]
Build = Callable[[Allocate], tuple[np.ndarray, np.ndarray, tuple[str, ...]]]


def cache_folder() -> Path:
    """Return where decoded images lie: `$ROLEKD_CACHE`, else `rolekd_ray` in the user's cache folder."""
    chosen = os.environ.get("ROLEKD_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rolekd_ray"


def entry_name(label: str, settings: Mapping[str, object], files: Iterable[Path]) -> str:
    """Return the name of the entry for these settings and files; it changes when a file's path, size or time does."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    text = json.dumps([FORMAT, dict(settings), stats], sort_keys=True)
    return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def cached(name: str, entry: str, build: Build) -> ImageSet:
    """Return the image set of an entry; decodes it if it is not there or is damaged.

    The images are mapped, not read: processes that open one entry share its pages as long as nobody writes to them.
    One process decodes, others that want the same entry wait for it. Where the cache folder cannot be written, the
    images are decoded into this process's memory, and a warning says so.

    Args:
        name: the image set's name.
        entry: as from `entry_name`.
        build: decodes the images.
    """
    folder = cache_folder() / entry
    found = _open(folder, name)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f"{entry}.lock"):
            found = _open(folder, name)  # another process may have been quicker
            if found is None:
                _write(folder, build)
                found = _open(folder, name)
    except (OSError, NotImplementedError) as problem:  # the second: a file system without locks
        _log.warning("%s: not cached (%s); set ROLEKD_CACHE to a folder with room", folder, problem)
    if found is None:
        images, labels, class_names = build(lambda shape: np.empty(shape, np.uint8))
        found = ImageSet(name, torch.from_numpy(images), torch.from_numpy(labels), class_names)
    return found


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    while True:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
            break
        except Timeout:
            advance()  # the process that decodes is watched itself
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, build: Build) -> None:
    for left_over in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        aside.chmod(0o755)  # mkdtemp gives 0700; colleagues may share a cache

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            return _new_file(aside / "images.npy", shape)

        images, labels, class_names = build(allocate)
        np.save(aside / "labels.npy", labels)
        entry = {"class_names": class_names, "images_crc32": _crc32(images), "labels_crc32": _crc32(labels)}
        (aside / "entry.json").write_text(json.dumps(entry), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged entry
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _new_file(path: Path, shape: tuple[int, ...]) -> np.memmap:
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, else it kills the process at some later write
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def _open(folder: Path, name: str) -> ImageSet | None:
    if not folder.is_dir():
        return None
    try:
        entry = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="c")  # copy on write: no write can reach the file
        labels = np.load(folder / "labels.npy")
        # Reads every page, which training would do anyway: 0.1 s for 150 MB.
        sound = (_crc32(images), _crc32(labels)) == (entry["images_crc32"], entry["labels_crc32"])
        class_names = tuple(entry["class_names"])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as problem:
        _log.warning("%s: damaged, decoding again: %s", folder, problem)
        return None
    if not sound:
        _log.warning("%s: damaged, decoding again: checksums differ", folder)
        return None
    return ImageSet(name, torch.from_numpy(images), torch.from_numpy(labels), class_names)


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
