"""Notices that a Ray cluster's head is gone: says how to go on, and ends this process, which could only wait."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import ray
from ray.exceptions import RayError

LOOK_SECONDS, MOST_SILENT = 5.0, 9
"""The head is asked so often, and lost once it has been silent over so many looks in a row."""

log = logging.getLogger(__name__)


@contextmanager
def watch_head(go_on: str) -> Iterator[None]:
    """End this process with exit code 1 when the head has not answered for 45 s.

    There is no softer way: whatever asks Ray's head waits inside Ray, where no exception reaches it. Ray itself ends a
    driver as hard, 60 s after its head died and without a word about going on; of a head that hangs, or is cut off by
    the network, it waits for ever. The log is on disk, and locks end with their process, so nothing is lost by it.

    Args:
        go_on: the command to tell.
    """
    ended = Event()
    watch = Thread(target=_watch, args=(go_on, ended), name="head watch", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


def _watch(go_on: str, ended: Event) -> None:
    silent, answered = 0, _ask()
    # Looks are counted, not seconds: a laptop that slept, or a stopped process, has not missed any
    while silent < MOST_SILENT:
        if ended.wait(LOOK_SECONDS):
            answered.wait(LOOK_SECONDS)  # Ray shall not be shut down under a question
            return
        silent, answered = (0, _ask()) if answered.is_set() else (silent + 1, answered)
    log.error(
        "the head of the Ray cluster has not answered for %.0f s; expected one that lives. Nothing but the intervals "
        "under way is lost. When there is a cluster again, go on: %s",
        LOOK_SECONDS * MOST_SILENT,
        go_on,
    )
    os._exit(1)


def _ask() -> Event:
    """Ask the head something small, in a thread of its own, which Ray keeps for as long as the head is silent."""
    answered = Event()

    def ask() -> None:
        try:
            ray.nodes()
        except RayError as error:
            log.debug("the head refused: %s", error)
        finally:
            answered.set()

    Thread(target=ask, name="question to the head", daemon=True).start()
    return answered
