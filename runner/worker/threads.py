"""Threads without which a worker must not go on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


def essential(name: str, work: Callable[[], None]) -> threading.Thread:
    """A thread whose failure ends the process.

    A worker that renews its leases and can finish nothing, or the other way round, would hold its tasks for ever. A
    process that ends is restarted, and what it ran is handed on.
    """

    def run() -> None:
        try:
            work()
        except BaseException:
            log.exception("the worker cannot go on", action="crash", thread=name)
            os._exit(1)

    return threading.Thread(target=run, name=name, daemon=True)
