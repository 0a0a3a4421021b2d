"""A proxy before an object store that answers late, stalls for a while, or falls silent."""

import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

REQUEST = re.compile(rb"[A-Z]+ /\S* HTTP/")


class LateProxy:
    """Passes bytes on to a store; each request is held up by `delay_seconds`, and all of them by `stall`.

    Requests that a client has given up meanwhile reach the store nevertheless, late, as in a real network.
    """

    def __init__(self, store: str, delay_seconds: float):
        parts = urlsplit(store)
        self._store, self.delay_seconds = (parts.hostname, parts.port), delay_seconds
        self.requests = 0
        self.seen: Callable[[bytes], None] = lambda request: None
        """Called with the first bytes of each request."""
        self._flows = threading.Event()
        self._flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """From now on nothing gets through."""
        self._flows.clear()

    def speak(self) -> None:
        """End the silence."""
        self._flows.set()

    def stall(self, seconds: float) -> None:
        """Let nothing through for so long."""
        self.fall_silent()
        threading.Timer(seconds, self.speak).start()

    def close(self) -> None:
        """Take no more connections."""
        self.speak()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._store) as server:
            try:
                while True:
                    for ready in select.select([client, server], [], [])[0]:
                        data = ready.recv(2**16)
                        if not data:
                            return
                        if ready is client and REQUEST.match(data):
                            self.requests += 1
                            self.seen(data)
                            time.sleep(self.delay_seconds)
                        self._flows.wait()
                        (server if ready is client else client).sendall(data)
            except OSError:
                return  # one side has given up


@contextmanager
def late_proxy(store: str, delay_seconds: float = 0.3) -> Iterator[LateProxy]:
    """Run a proxy before a store."""
    proxy = LateProxy(store, delay_seconds)
    try:
        yield proxy
    finally:
        proxy.close()
