"""A real S3 server on the loopback interface, and what tests need to look into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.request import Request, urlopen

import pytest

from rolekd_ray import storage
from rolekd_ray.storage import ObjectPath, place

BUCKET = "runs"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",  # no look for an instance's role
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server on a free port, with one bucket; point this process and its children at it. Gives its URL."""
    moto = pytest.importorskip("moto.server", reason="needs moto[server], a real S3 server: pip install '.[test]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SETTINGS | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        storage._store.cache_clear()
        urlopen(Request(f"{url}/{BUCKET}", method="PUT")).close()
        yield url
    storage._store.cache_clear()
    server.stop()


def objects(prefix: ObjectPath) -> dict[str, bytes]:
    """All objects below a prefix, by name from there on; without the empty marks of prefixes."""
    from pyarrow.fs import FileSelector

    store = storage._store(prefix.bucket)
    found = store.get_file_info(FileSelector(prefix.key, recursive=True, allow_not_found=True))
    paths = [place(f"s3://{info.path}") for info in found if info.is_file]
    return {path.key.removeprefix(f"{prefix.key}/"): path.read_bytes() for path in paths}


@contextmanager
def checked_access(url: str) -> Iterator[None]:
    """Have the server check who asks; nobody is known to it."""
    _unchecked_requests(url, "0")
    storage._store.cache_clear()
    try:
        yield
    finally:
        _unchecked_requests(url, "inf")
        storage._store.cache_clear()


def _unchecked_requests(url: str, count: str) -> None:
    headers = {"Content-Type": "text/plain"}
    urlopen(Request(f"{url}/moto-api/reset-auth", count.encode(), headers, method="POST")).close()


class _Refusing(BaseHTTPRequestHandler):
    """Answers as S3 does to who does not say who it is; moto's server breaks on that."""

    def do_HEAD(self) -> None:
        assert "Authorization" not in self.headers, "this test is about requests without credentials"
        self.send_response(403)
        self.end_headers()

    do_GET = do_PUT = do_HEAD

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def refusing_server() -> Iterator[str]:
    """Run a server that refuses everyone; gives its URL."""
    server = HTTPServer(("127.0.0.1", 0), _Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
