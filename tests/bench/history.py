"""A long past, written by SQL: finished runs with their task instances and the events those had left."""

from __future__ import annotations

from typing import Any

import psycopg

TASKS = 1_000_000
RUNS = TASKS // 200

_RUNS = """
INSERT INTO dag_run (dag_id, bundle_version, logical_date, interval_start, interval_end, run_type, state, unfinished,
                     created_at, ended_at)
SELECT d.dag_id, d.bundle_version, at, at, at, 'scheduled', 'success', 0, at, at + interval '1 s'
FROM dag d, generate_series(1, %s) AS n, LATERAL (SELECT now() - n * interval '10 min' AS at) AS t
WHERE d.dag_id = %s
"""
_TASKS = """
INSERT INTO task_instance (run_id, dag_id, task_id, bundle_version, state, queue, priority, trigger_rule, leaf,
                           upstream_total, waiting_on, attempt, tries, max_tries, ready_at, queued_at, node_id,
                           started_at, ended_at)
SELECT r.id, r.dag_id, t.task_id, r.bundle_version, 'success', t.queue, t.priority, t.trigger_rule, t.leaf,
       t.upstream_total, 0, 1, 1, t.max_tries, r.created_at, r.created_at,
       'bench-worker', r.created_at, r.ended_at
FROM dag_run r JOIN dag_task t USING (dag_id, bundle_version)
WHERE r.dag_id = %s AND r.run_type = 'scheduled'
"""
_EVENTS = """
INSERT INTO event (at, kind, subject, state, run_id, attempt, node_id)
SELECT t.started_at, 'task', t.id::text, s.state, t.run_id, 1, t.node_id
FROM task_instance t JOIN dag_run r ON r.id = t.run_id, unnest(ARRAY['queued', 'running', 'success']) AS s(state)
WHERE r.run_type = 'scheduled'
"""


def insert(database: psycopg.Connection[Any], dag_id: str) -> None:
    """Put a million finished task instances of this DAG (200 tasks) into the past."""
    with database.transaction():
        database.execute(_RUNS, (RUNS, dag_id))
        database.execute(_TASKS, (dag_id,))
        database.execute(_EVENTS)
    for table in ("dag_run", "task_instance", "event"):
        database.execute(f"VACUUM ANALYZE {table}")
    database.execute("CHECKPOINT")
