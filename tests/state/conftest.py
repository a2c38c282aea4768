"""Small DAGs made straight from specs, and a node to run them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.state import bundles, nodes, transitions
from runner.state.nodes import NodeInfo
from runner.state.transitions import Claim, Outcome

DATE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def task(task_id: str, *upstream: str, **options: Any) -> TaskSpec:
    return TaskSpec(task_id=task_id, upstream=upstream, **options)


class World:
    """A database with one DAG and one node, and the moves a scheduler and a worker make."""

    fresh_seconds = 3600.0  # no test may depend on how busy the machine is

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def dag(self, *tasks: TaskSpec, dag_id: str = "d", **options: Any) -> None:
        spec = DagSpec(dag_id=dag_id, tasks=tasks, **options)
        with self.engine.begin() as c:
            bundles.register_and_activate(
                c, version=f"v-{dag_id}", name=dag_id, url="file:///b", size=1, specs=[spec], who="test"
            )

    def node(
        self, node_id: str = "n1", *, slots: int = 4, queues: tuple[str, ...] = ("default",), boot: str = "b"
    ) -> str:
        info = NodeInfo(
            node_id=node_id, role="worker", pool="default", release="r1", boot_id=boot, slots=slots, queues=queues
        )
        with self.engine.begin() as c:
            return nodes.register(c, info)

    def run(self, dag_id: str = "d", date: dt.datetime = DATE) -> int:
        with self.engine.begin() as c:
            run = transitions.create_run(c, dag_id, date)
        assert run is not None
        return run

    def dispatch(self) -> list[transitions.Message]:
        with self.engine.begin() as c:
            return transitions.dispatch(c, fresh_seconds=self.fresh_seconds)

    def claim(self, message: transitions.Message, node_id: str = "n1") -> Claim | None:
        with self.engine.begin() as c:
            return transitions.claim(c, message.task_instance, message.attempt, node_id=node_id, lease_seconds=300)

    def take(self) -> list[Claim]:
        claims = [self.claim(m) for m in self.dispatch()]
        return [c for c in claims if c]

    def end(self, claim: Claim, result: Any = "success", **more: Any) -> bool:
        with self.engine.begin() as c:
            done = transitions.finish(c, [Outcome(claim.task_instance, claim.token, result, **more)])
        return claim.token in done.accepted

    def finish(self, claim: Claim, result: Any = "success", *, slots: int = 0, **more: Any) -> transitions.Finished:
        """End an attempt and let its node's slots take the next."""
        outcome = Outcome(claim.task_instance, claim.token, result, **more)
        with self.engine.begin() as c:
            return transitions.finish(c, [outcome], node_id="n1", queues=["default"], slots=slots)

    def states(self, run: int) -> dict[str, str]:
        with self.engine.begin() as c:
            rows = c.execute(text("SELECT task_id, state FROM task_instance WHERE run_id = :r"), {"r": run})
            return {r.task_id: r.state for r in rows}

    def run_state(self, run: int) -> str:
        return str(self.one("SELECT state FROM dag_run WHERE id = :r", r=run))

    def one(self, sql: str, **values: Any) -> Any:
        with self.engine.begin() as c:
            return c.execute(text(sql), values).scalar()

    def do(self, move: Callable[[Connection], Any]) -> Any:
        with self.engine.begin() as c:
            return move(c)


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine)
