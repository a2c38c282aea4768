"""Tasks enough that no slot ever waits for one, and how much of them was done when."""

from __future__ import annotations

import threading

from .conftest import Fleet

_OPEN = "FROM task_instance WHERE task_id = 'nap' AND state IN ('waiting', 'ready', 'queued', 'running')"


class Load:
    """So many short tasks waiting or running, always."""

    def __init__(self, fleet: Fleet, tasks: int) -> None:
        self._fleet, self._tasks = fleet, tasks
        self._first = 0
        self._over = threading.Event()
        self._feeder = threading.Thread(target=self._feed, daemon=True)

    def __enter__(self) -> Load:
        self._first = int(self._fleet.one("SELECT coalesce(max(id), 0) + 1 FROM dag_run"))
        self._feeder.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._feeder.join(30)
        self._fleet.eventually(lambda: not self._fleet.one(f"SELECT count(*) {_OPEN}"), "the last task ends")

    def _feed(self) -> None:
        while not self._over.wait(0.2):
            for _ in range(self._tasks - int(self._fleet.one(f"SELECT count(*) {_OPEN}"))):
                self._fleet.start("naps", seconds=5)

    def running(self) -> int:
        return int(self._fleet.one(f"SELECT count(*) {_OPEN} AND state = 'running'"))

    def now(self) -> float:
        return float(self._fleet.one("SELECT extract(epoch FROM clock_timestamp())"))

    def work(self, begin: float, end: float) -> float:
        """Seconds that tasks have run between two times, added up."""
        worked = """
            SELECT coalesce(sum(extract(epoch FROM least(ended_at, to_timestamp(:end))
                                                 - greatest(started_at, to_timestamp(:begin)))), 0)
            FROM task_instance WHERE run_id >= :first AND task_id = 'nap'
              AND started_at < to_timestamp(:end) AND ended_at > to_timestamp(:begin)"""
        return float(self._fleet.one(worked, first=self._first, begin=begin, end=end))

    def interrupted(self) -> int:
        """How many tasks were handed on, or have not succeeded."""
        found = """
            SELECT sum(interruptions) + count(*) FILTER (WHERE state <> 'success')
            FROM task_instance WHERE run_id >= :first AND task_id = 'nap'"""
        return int(self._fleet.one(found, first=self._first))
