"""What every request may use: settings, database, logs, live hub and the cache of rendered pages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Request
from sqlalchemy import Engine

from runner.settings import Settings
from runner.storage import Storage
from runner.web.live import Hub


class PageCache:
    """Pages rendered a moment ago, so that a hundred viewers of one run cost as much as one.

    An entry is used while it is younger than `seconds` and nothing has happened since it was begun.
    """

    def __init__(self, seconds: float = 1.0, size: int = 200) -> None:
        self.seconds = seconds
        self.size = size
        self._entries: dict[str, tuple[float, int, str]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._generation = 0

    def get(self, key: str, version: int, make: Callable[[], str]) -> str:
        """The page under this key, made by `make` unless there is a fresh one; at most one thread makes it."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            entry = self._entries.get(key)
            if entry and entry[0] > time.monotonic() and entry[1] == version:
                return entry[2]
            generation, until = self._generation, time.monotonic() + self.seconds
            page = make()
            with self._guard:
                if len(self._entries) >= self.size:
                    self._entries.clear()
                    self._locks.clear()
                if generation == self._generation:
                    self._entries[key] = (until, version, page)
            return page

    def clear(self) -> None:
        """Forget everything: somebody changed something and wants to see it."""
        with self._guard:
            self._generation += 1
            self._entries.clear()


@dataclass
class Context:
    """Shared by all requests of one process."""

    settings: Settings
    engine: Engine
    hub: Hub
    cache: PageCache = field(default_factory=PageCache)
    graphs: dict[tuple[str, str], dict[str, tuple[str, ...]]] = field(default_factory=dict)  # by DAG and version
    _storage: Storage | None = None

    def storage(self) -> Storage | None:
        """Where logs are kept, opened on first use; None if that is not configured."""
        if self._storage is None and self.settings.storage_url:
            self._storage = Storage.open(self.settings.storage_url, region=self.settings.region)
        return self._storage


def context_of(request: Request) -> Context:
    """The context of the application this request came to."""
    context: Context = request.app.state.context
    return context
