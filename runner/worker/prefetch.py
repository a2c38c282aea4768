"""What was just pushed is brought to the node before a task asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy import Engine

from runner.bundle import BUILTIN
from runner.state import bundles

log = structlog.get_logger(__name__)


class Prefetch:
    """A thread that fetches versions as they become active, with their environments.

    Only a comfort: a task whose version is not there fetches it itself, and a failure here is its to tell.
    """

    def __init__(self, engine: Engine, fetch: Callable[[str], Path]) -> None:
        self._engine = engine
        self._fetch = fetch
        self._seen: int | None = None  # unknown at first: a new node does not fetch what was pushed before
        self._newest = 0
        self._wake = threading.Event()
        threading.Thread(target=self._loop, name="prefetch", daemon=True).start()

    def look(self, deploy: int) -> None:
        """Told by each heartbeat which line of the deploy history is the newest."""
        if self._seen is None:
            self._seen = deploy
        self._newest = deploy
        if deploy != self._seen:
            self._wake.set()

    def _loop(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            since, self._seen = self._seen or 0, self._newest
            try:
                with self._engine.begin() as connection:
                    versions = bundles.deployed_since(connection, since)
                for version in versions:
                    if version != BUILTIN:
                        self._fetch(version)
            except Exception as e:
                log.warning("a new bundle version is not here yet", action="prefetch", error=str(e))
