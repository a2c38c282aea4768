"""DAGs whose sensors wait, and a scheduler's loop that looks after them."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from runner.authoring import DAG
from runner.scheduler.sense import Sensing
from runner.state import bundles, nodes, transitions
from runner.state.nodes import NodeInfo

DATE = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something true and return it."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


class Waits:
    """A database, DAGs pushed to it, and schedulers' loops that can be started and stopped."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loops: list[Sensing] = []

    def push(self, *dags: DAG, version: str = "v1") -> None:
        specs = [d.spec() for d in dags]
        with self.engine.begin() as c:
            bundles.register_and_activate(c, version=version, name="b", url="", size=0, specs=specs, who="test")

    def run(self, dag_id: str = "d", date: dt.datetime = DATE, **options: Any) -> int:
        with self.engine.begin() as c:
            run = transitions.create_run(c, dag_id, date, **options)
        assert run is not None
        return run

    def heartbeat(self, node_id: str) -> None:
        with self.engine.begin() as c:
            info = NodeInfo(node_id=node_id, role="scheduler", pool="scheduler", release="r", boot_id="b")
            nodes.register(c, info)
            nodes.heartbeat(c, node_id)

    def sense(self, node_id: str = "s1", **options: Any) -> Sensing:
        self.heartbeat(node_id)
        loop = Sensing(self.engine, node_id, **options)
        loop.start()
        self.loops.append(loop)
        return loop

    def task(self, task_id: str, dag_id: str = "d") -> Any:
        with self.engine.begin() as c:
            return c.execute(
                text("""SELECT t.*, x.value FROM task_instance t LEFT JOIN xcom x USING (run_id, task_id, map_index)
                        WHERE t.task_id = :t AND t.dag_id = :d ORDER BY t.id DESC LIMIT 1"""),
                {"t": task_id, "d": dag_id},
            ).one()

    def count(self, state: str) -> int:
        with self.engine.begin() as c:
            n: int = c.execute(
                text("SELECT count(*) FROM task_instance WHERE state = :s AND kind = 'sensor'"), {"s": state}
            ).scalar_one()
            return n

    def over(self, task_id: str = "wait", dag_id: str = "d") -> Any:
        """The sensor's row once it has ended."""
        return until(lambda: (row := self.task(task_id, dag_id)).state not in ("waiting", "deferred") and row)


@pytest.fixture
def waits(engine: Engine) -> Iterator[Waits]:
    world = Waits(engine)
    yield world
    for loop in world.loops:
        loop.stop()
