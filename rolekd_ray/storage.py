"""Where runs lie: in a local or shared folder (`pathlib.Path`), or in an object store (`ObjectPath`).

An object store knows no append, no rename and no lock, but an object appears whole or not at all, and what was written
is seen by everyone at once. Code that works on both asks little: `ObjectPath` has pathlib's names for just that.
pyarrow is imported on first use: modules that import this one stay light.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from rolekd_ray.errors import StorageError

SCHEMES = ("s3", "gs")
"""Not `abfs` and `hdfs`, though pyarrow opens them: they show an object, still empty, before it is written."""

S3_OPTIONS = ("endpoint_override", "region", "scheme")
ATTEMPTS = 6
"""A request is tried so often. A server that is gone is given up after about 15 seconds; one that is there and does not
answer, each time after 3 to 9, after 35 to 65 in all."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or a prefix of objects, of a store; immutable, can be pickled, opens its store on first use.

    `key` begins with the bucket; `options` are those of the address (`endpoint_override=…&scheme=http`). Methods are
    named and behave as pathlib's, `iterdir` and `glob` over one level alone.

    Raises:
        StorageError: by every method that asks the store: no such bucket, refused, not reachable.
        FileNotFoundError: by `read_bytes` and `read_text`, if there is no such object.
    """

    scheme: str
    key: str
    options: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}" + (f"?{self.options}" if self.options else "")

    def __truediv__(self, name: str) -> "ObjectPath":
        return self._at(str(PurePosixPath(f"{self.key}/{name}")))  # joined as text: "/x" stays below too

    def _at(self, key: str) -> "ObjectPath":
        return ObjectPath(self.scheme, key, self.options)

    @property
    def name(self) -> str:
        """Last part of the key."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """Name without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The name's last part, as `.yaml`."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "ObjectPath":
        """The prefix this lies under."""
        return self._at(str(PurePosixPath(self.key).parent))

    @property
    def bucket(self) -> "ObjectPath":
        """The bucket this lies in."""
        return self._at(self.key.split("/")[0])

    def absolute(self) -> "ObjectPath":
        """Return itself."""
        return self

    def expanduser(self) -> "ObjectPath":
        """Return itself."""
        return self

    def with_name(self, name: str) -> "ObjectPath":
        """Return its neighbour."""
        return self.parent / name

    def exists(self) -> bool:
        """Whether it is an object, or there are objects below it."""
        return self._kind() != "NotFound"

    def is_file(self) -> bool:
        """Whether it is an object."""
        return self._kind() == "File"

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return self._kind() == "Directory"

    def _kind(self) -> str:
        with _asking(self) as store:
            return store.get_file_info(self.key).type.name

    def read_bytes(self) -> bytes:
        """Return the object."""
        with _asking(self) as store, store.open_input_file(self.key) as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Write the object, or write it anew; others see it whole or not at all, and when this returns it is there."""
        with _asking(self) as store, store.open_output_stream(self.key) as file:
            # In one piece: pyarrow cannot abort, so a stream that fails between two pieces would keep the first
            file.write(data)

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield objects and prefixes right below it, by name."""
        from pyarrow.fs import FileSelector

        with _asking(self) as store:
            found = store.get_file_info(FileSelector(self.key, allow_not_found=True))
        return iter(sorted(self / info.base_name for info in found))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        """Yield what `iterdir` does and fits."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with _asking(self) as store:
                store.delete_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def delete_below(self) -> None:
        """Delete all objects below it; fine if there are none."""
        try:
            with _asking(self) as store:
                store.delete_dir(self.key)
        except FileNotFoundError:
            pass


Place = Path | ObjectPath
"""Where a file, a folder or a run lies."""


def place(where: object) -> Place:
    """Return the place that a path or an address (`s3://bucket/prefix`) names.

    Raises:
        StorageError: the address is of a kind that runs cannot lie in, or is misspelt.
    """
    if isinstance(where, Path | ObjectPath):
        return where
    if not isinstance(where, str):
        raise StorageError(f"storage: got {where!r}; expected a folder or an address such as s3://bucket/prefix")
    if "://" not in where:
        return Path(where)
    parts = urlsplit(where)
    if parts.scheme == "file" and not parts.netloc:
        return Path(unquote(parts.path))
    if "@" in parts.netloc:  # run directories quote their own address: it would lie open in them
        raise StorageError(f"storage: got an address with credentials for {parts.hostname}; expected them in {SECRETS}")
    _check(where, parts)
    return ObjectPath(parts.scheme, str(PurePosixPath(parts.netloc, parts.path.strip("/"))), parts.query)


def places(where: Place | tuple[Place, ...] | None) -> tuple[Place, ...]:
    """Return what may be no place, one or several, as several."""
    if where is None:
        return ()
    return where if isinstance(where, tuple) else (where,)


SECRETS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or an instance's role"


def _check(where: str, parts: Any) -> None:
    if parts.scheme not in SCHEMES:
        raise StorageError(f"storage: got {where!r}; expected a folder or {' or '.join(f'{s}://' for s in SCHEMES)}")
    if not parts.netloc or parts.fragment or {"..", "."} & set(parts.path.split("/")):
        raise StorageError(f"storage: got {where!r}; expected {parts.scheme}://bucket/prefix without '.', '..' and '#'")
    unknown = [key for key, _ in parse_qsl(parts.query) if key not in S3_OPTIONS] if parts.scheme == "s3" else []
    if unknown:
        raise StorageError(f"storage: unknown option {unknown[0]!r} in {where!r}; expected {', '.join(S3_OPTIONS)}")


def check_storage(where: Place) -> None:
    """Check that a store answers and has the bucket; of a folder nothing, for it can be made.

    Raises:
        StorageError: it does not.
    """
    if isinstance(where, ObjectPath) and not where.bucket.exists():
        raise StorageError(_no_bucket(where))


def children(folder: Place, pattern: str = "*") -> list[Place]:
    """Return what lies right in a folder and fits, by name; nothing of a folder that is not there."""
    return sorted(folder.glob(pattern), key=str)


def for_ray(where: Place) -> dict[str, Any]:
    """Return a place as arguments of Ray's `RunConfig`: Ray would not know a store's options by its address alone."""
    if isinstance(where, ObjectPath):
        return {"storage_path": where.key, "storage_filesystem": _store(where.bucket)}
    return {"storage_path": str(where)}


def relative(where: Place, base: Place) -> str:
    """Return a place as seen from another: a relative path; of places in different stores, the whole address."""
    if isinstance(where, Path) and isinstance(base, Path):
        return os.path.relpath(where, base)
    if isinstance(where, ObjectPath) and isinstance(base, ObjectPath) and where.bucket == base.bucket:
        return os.path.relpath(f"/{where.key}", f"/{base.key}")
    return str(where)


def same_store(one: Place, other: Place) -> bool:
    """Whether two places lie in one bucket, or both in folders."""
    if isinstance(one, ObjectPath) and isinstance(other, ObjectPath):
        return one.bucket == other.bucket
    return isinstance(one, Path) and isinstance(other, Path)


@lru_cache(maxsize=32)
def _store(bucket: ObjectPath) -> Any:
    """Return pyarrow's filesystem for a bucket; one per process, for each holds its own connections."""
    from pyarrow import fs

    if bucket.scheme != "s3":
        return fs.FileSystem.from_uri(str(bucket))[0]
    options = dict(parse_qsl(bucket.options))
    # pyarrow itself reads these names in some versions and ways of opening a store, and in others not
    endpoint = options.get("endpoint_override") or _first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    region = options.get("region") or _first("AWS_REGION", "AWS_DEFAULT_REGION")
    return fs.S3FileSystem(
        region=region or ("us-east-1" if endpoint else fs.resolve_s3_region(bucket.key)),
        endpoint_override=endpoint,
        scheme=options.get("scheme"),
        allow_delayed_open=True,  # one request per small object in place of three
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


def _first(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


@contextmanager
def _asking(where: ObjectPath) -> Iterator[Any]:
    """Give the store of a place; word what it answers."""
    try:
        yield _store(where.bucket)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise StorageError(_worded(where, " ".join(str(error).split()))) from error


def _worded(where: ObjectPath, said: str) -> str:
    if "NO_SUCH_BUCKET" in said or f"Bucket '{where.bucket.key}' not found" in said:
        return _no_bucket(where)
    refused = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN", "status 403")
    if any(sign in said for sign in refused):
        return f"{where}: access refused: {said}; expected credentials that may read and write there: {SECRETS}"
    if "NETWORK_CONNECTION" in said:
        return f"{where}: cannot be reached: {said}; expected a server that answers: check endpoint, region and network"
    return f"{where}: cannot be read or written: {said}"


def _no_bucket(where: ObjectPath) -> str:
    return f"{where}: no such bucket, got {where.bucket.key!r}; expected one that exists: buckets are not made here"
