"""A task that is told to stop cleans up first: it takes back what it has started elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class Stopped(KeyboardInterrupt):
    """The task was told to stop. A KeyboardInterrupt, so that libraries cancel what they wait for."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM raises Stopped inside the block; when the block has cleaned up, the signal does what it did before.

    Outside of the main thread nothing changes: signals arrive there only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told = False

    def stop(*_: object) -> None:
        nonlocal told
        told = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise Stopped("told to stop (SIGTERM)")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
