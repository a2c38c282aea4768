"""What the autoscaler reads and writes: the tasks that wait, how long their like took, and what it made of that."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runner.state import nodes
from runner.state.transitions import notify

# A sample of what waits, by task, and how long its last successful instances took: of the same run (a mapped task's
# items) and of the five before. All through indexes, and as many as are there for a sample.
_DURATIONS = text("""
WITH sample AS (
    SELECT dag_id, task_id, max(run_id) AS run_id, count(*) AS n
    FROM (SELECT dag_id, task_id, run_id FROM task_instance
          WHERE state IN ('ready', 'queued') AND admitted AND state = 'ready' AND queue = ANY (:queues) LIMIT 500) t
    GROUP BY dag_id, task_id ORDER BY n DESC LIMIT 50
)
SELECT s.n, CAST(past.seconds AS float) AS seconds FROM sample s, LATERAL (
    SELECT avg(extract(epoch FROM l.ended_at - l.started_at)) AS seconds FROM (
        SELECT t.started_at, t.ended_at
        FROM (SELECT id FROM dag_run WHERE dag_id = s.dag_id
              AND logical_date <= (SELECT logical_date FROM dag_run WHERE id = s.run_id)
              ORDER BY logical_date DESC LIMIT 6) r,
        LATERAL (SELECT started_at, ended_at FROM task_instance
                 WHERE run_id = r.id AND task_id = s.task_id AND state = 'success' AND started_at IS NOT NULL
                 LIMIT 20) t
        LIMIT 60) l
) past
""")
_RECORD = text("""
INSERT INTO pool_scaling (pool, at, minimum, maximum, size, needed, target, reason, history)
VALUES (:pool, clock_timestamp(), :minimum, :maximum, :size, :needed, :target, :reason, CAST(:history AS jsonb))
ON CONFLICT (pool) DO UPDATE SET at = excluded.at, minimum = excluded.minimum, maximum = excluded.maximum,
    size = excluded.size, needed = excluded.needed, target = excluded.target, reason = excluded.reason,
    history = excluded.history
""")
_LOAD = text("""
SELECT queue, ready_at, CAST(extract(epoch FROM ended_at - started_at) AS float) AS seconds
FROM task_instance
WHERE ready_at >= :since AND ended_at IS NOT NULL AND started_at IS NOT NULL AND state IN ('success', 'failed')
  AND ended_at >= started_at AND (CAST(:queues AS text[]) IS NULL OR queue = ANY (CAST(:queues AS text[])))
ORDER BY ready_at, id
""")


@dataclass(frozen=True)
class PoolScalingRow:
    """What the autoscaler last thought of a pool, `age_seconds` ago."""

    pool: str
    age_seconds: float
    minimum: int
    maximum: int
    size: int
    needed: int
    target: int
    reason: str
    history: dict[str, Any]


def lead(connection: Connection, duty: str) -> bool:
    """Be the only one that does this duty, for as long as this connection lives. False while another one is."""
    return bool(connection.execute(text("SELECT pg_try_advisory_lock(hashtext(:duty))"), {"duty": duty}).scalar())


def now(connection: Connection) -> float:
    """The database's clock in seconds: the same for whoever leads."""
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


def rolling(connection: Connection) -> set[str]:
    """The worker pools that are being rolled."""
    return set(
        connection.execute(text("SELECT pool FROM rollout WHERE state = 'running' AND role = 'worker'")).scalars()
    )


def durations(connection: Connection, queues: Collection[str]) -> list[tuple[int, float | None]]:
    """(tasks that wait on these queues, seconds such a task took lately or None), of a sample of 500."""
    return [(n, seconds) for n, seconds in connection.execute(_DURATIONS, {"queues": sorted(queues)})]


def drain_idle(connection: Connection, node_id: str, *, reason: str, by: str, deadline_seconds: float) -> bool:
    """Cordon a node if it runs nothing at this very moment: a claim locks the node's row too. True if it drains."""
    connection.execute(text("SELECT 1 FROM node WHERE node_id = :id FOR UPDATE"), {"id": node_id})
    if nodes.running(connection, node_id):
        return False
    return nodes.cordon(connection, node_id, reason=reason, by=by, deadline_seconds=deadline_seconds)


def record(connection: Connection, pool: str, values: Mapping[str, Any], *, event: str = "") -> None:
    """Write down what was thought of a pool (the columns of pool_scaling), and what is done about it as an event."""
    connection.execute(_RECORD, {**values, "pool": pool, "history": json.dumps(values["history"])})
    if event:
        connection.execute(
            text("INSERT INTO event (kind, subject, state, detail) VALUES ('pool', :pool, 'scaling', :detail)"),
            {"pool": pool, "detail": event},
        )
        notify(connection)


def forget(connection: Connection, pools: Collection[str]) -> None:
    """Remove the rows of all pools but these: nobody scales them any more."""
    connection.execute(text("DELETE FROM pool_scaling WHERE NOT pool = ANY (:pools)"), {"pools": sorted(pools)})


def pools(connection: Connection) -> list[PoolScalingRow]:
    """What was last thought of each pool that is scaled."""
    rows = connection.execute(
        text("""
        SELECT pool, CAST(extract(epoch FROM clock_timestamp() - at) AS float) AS age_seconds, minimum, maximum, size,
               needed, target, reason, history
        FROM pool_scaling ORDER BY pool""")
    )
    return [PoolScalingRow(**row) for row in rows.mappings()]


def load(
    connection: Connection, since: dt.datetime, queues: Collection[str] | None = None
) -> Iterator[tuple[str, dt.datetime, float]]:
    """(queue, ready at, seconds of the last attempt) of the tasks that became ready since then and were executed.

    Reads the whole of task_instance, in portions: for an operator, not for a loop.
    """
    values = {"since": since, "queues": sorted(queues) if queues is not None else None}
    for row in connection.execute(_LOAD, values, execution_options={"yield_per": 5000}):
        yield row.queue, row.ready_at, row.seconds
