"""Runs of other DAGs and their tasks: all that are waited for, with one statement."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, text

from runner.scheduler.sense.answers import Answer, Answers, Found, Never, Waiting

_STATES = text("""
SELECT w.id, CASE WHEN w.task_id IS NULL THEN r.state ELSE t.state END AS state,
       w.task_id IS NOT NULL AND t.id IS NULL AND r.state IN ('success', 'failed', 'running') AS no_task
FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS w(id bigint, dag_id text, task_id text, at timestamptz)
JOIN dag_run r ON r.dag_id = w.dag_id AND r.logical_date = w.at
LEFT JOIN task_instance t ON t.run_id = r.id AND t.task_id = w.task_id AND t.map_index = -1
""")
_OVER = ("success", "failed", "skipped", "upstream_failed")


class ExternalTask:
    """Asks our own database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def group(self, condition: dict[str, Any]) -> str:
        _when(condition)
        return "task"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        return await asyncio.to_thread(self._look, waiting)

    def _look(self, waiting: Sequence[Waiting]) -> dict[int, Answer]:
        wanted = [
            {
                "id": w.id,
                "dag_id": w.condition["dag_id"],
                "task_id": w.condition["task_id"],
                "at": _when(w.condition).isoformat(),
            }
            for w in waiting
        ]
        with self._engine.begin() as connection:
            rows = connection.execute(_STATES, {"wanted": json.dumps(wanted)}).all()
        conditions = {w.id: w.condition for w in waiting}
        answers: dict[int, Answer] = {}
        for row in rows:
            condition = conditions[row.id]
            name = f"DAG {condition['dag_id']!r}, {_when(condition).isoformat()}"
            if row.no_task:
                answers[row.id] = Never(f"the run of {name} has no task {condition['task_id']!r}")
            elif row.state in condition["wait_for"]:
                answers[row.id] = Found(row.state)
            elif row.state in _OVER:
                who = f"task {condition['task_id']!r}" if condition["task_id"] else "the run"
                answers[row.id] = Never(f"{who} of {name} has ended as {row.state}")
        return answers

    async def close(self) -> None: ...


def _when(condition: dict[str, Any]) -> dt.datetime:
    when = dt.datetime.fromisoformat(condition["logical_date"])
    if when.tzinfo is None:
        raise ValueError(f"logical_date {condition['logical_date']!r} has no time zone")
    return when + dt.timedelta(seconds=condition["offset_seconds"])
