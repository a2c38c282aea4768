"""Creating runs and starting them: at once, or when a limit of their DAG lets them."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runner.state.transitions.propagate import expand, propagate
from runner.state.transitions.records import notify
from runner.state.transitions.rules import START

_LIMIT = text("SELECT max_active_runs FROM dag WHERE dag_id = :dag_id AND max_active_runs IS NOT NULL FOR UPDATE")
# Nor does a new run pass those that wait already.
_ROOM_NOW = text("""
SELECT count(*) FILTER (WHERE state = 'running') < :limit AND count(*) FILTER (WHERE state = 'queued') = 0
FROM dag_run WHERE dag_id = :dag_id AND state IN ('queued', 'running') AND id <> :id
""")

_DEFAULTS = """(SELECT coalesce(jsonb_object_agg(p.key, p.value -> 'default') FILTER (WHERE p.value ? 'default'), '{}')
    FROM dag_version v, jsonb_each(v.spec -> 'params') p
    WHERE v.dag_id = dag.dag_id AND v.bundle_version = coalesce(CAST(:version AS text), dag.bundle_version))"""
_CREATE = text(f"""
INSERT INTO dag_run (dag_id, bundle_version, logical_date, interval_start, interval_end, run_type, params, state,
                     unfinished, queue, priority, task_filter, triggers)
SELECT dag_id, coalesce(CAST(:version AS text), bundle_version), :logical_date, :interval_start, :interval_end,
       :run_type, {_DEFAULTS} || CAST(:params AS jsonb), 'queued', 0, CAST(:queue AS text),
       :priority, CAST(:tasks AS text[]), CAST(:triggers AS jsonb)
FROM dag WHERE dag_id = :dag_id
ON CONFLICT (dag_id, logical_date) DO NOTHING
RETURNING id
""")
_QUEUED = text(
    "INSERT INTO event (kind, subject, state, run_id, detail) VALUES ('run', :subject, 'queued', :id, :type)"
)

# A run of some tasks only counts the edges between those. One that waits for its own past is looked at again by
# `release_past`, so it does no harm that the past may change at this very moment. The past may also be a run that
# this very statement starts: it cannot see that one's tasks.
_START = text(f"""
WITH run AS (
    SELECT r.id, r.dag_id, r.bundle_version, r.queue, r.priority, r.task_filter, r.run_type, r.logical_date,
           v.run_timeout_seconds, d.max_active_tasks
    FROM dag_run r JOIN dag_version v USING (dag_id, bundle_version) JOIN dag d USING (dag_id)
    WHERE r.id = ANY (:ids) AND r.state = 'queued'
    ORDER BY r.id FOR NO KEY UPDATE OF r
), made AS (
    SELECT run.id AS run_id, run.dag_id, run.bundle_version, run.queue AS run_queue, run.priority AS run_priority,
           t.task_id, t.kind, t.queue, t.priority, t.trigger_rule, t.setup, t.max_tries, t.timeout_seconds,
           CASE WHEN run.task_filter IS NULL THEN t.leaf ELSE NOT EXISTS (
               SELECT 1 FROM dag_edge e WHERE e.dag_id = t.dag_id AND e.bundle_version = t.bundle_version
                 AND e.upstream = t.task_id AND e.downstream = ANY (run.task_filter)) END AS leaf,
           CASE WHEN run.task_filter IS NULL THEN t.upstream_total ELSE (
               SELECT count(*) FROM dag_edge e WHERE e.dag_id = t.dag_id AND e.bundle_version = t.bundle_version
                 AND e.downstream = t.task_id AND e.upstream = ANY (run.task_filter)) END AS total,
           t.pool IS NOT NULL OR t.max_active IS NOT NULL OR run.max_active_tasks IS NOT NULL AS limited,
           t.depends_on_past AND coalesce((
               SELECT q.id = ANY (:ids) OR EXISTS (
                   SELECT 1 FROM task_instance p WHERE p.run_id = q.id AND p.task_id = t.task_id
                     AND p.map_index = -1 AND p.state NOT IN ('success', 'skipped'))
               FROM dag_run q WHERE q.dag_id = run.dag_id AND q.logical_date < run.logical_date
               ORDER BY q.logical_date DESC LIMIT 1), false) AS past_blocked
    FROM run JOIN dag_task t USING (dag_id, bundle_version)
    WHERE t.kind <> 'callback' AND (run.task_filter IS NULL OR t.task_id = ANY (run.task_filter))
), decided AS (
    SELECT *, CASE WHEN total = 0 OR trigger_rule = 'always' THEN {START} ELSE 'waiting' END AS state FROM made
), created AS (
    INSERT INTO task_instance (run_id, dag_id, task_id, bundle_version, kind, state, queue, priority, trigger_rule,
                               leaf, setup, limited, admitted, past_blocked, upstream_total, waiting_on, max_tries,
                               timeout_seconds, ready_at, started_at)
    SELECT run_id, dag_id, task_id, bundle_version, kind, state, coalesce(run_queue, queue), priority + run_priority,
           trigger_rule, leaf, setup, limited, NOT limited, past_blocked, total, total, max_tries, timeout_seconds,
           CASE WHEN state = 'ready' THEN now() END, CASE WHEN state = 'deferred' THEN now() END
    FROM decided ORDER BY run_id, task_id
    RETURNING id, run_id, kind, upstream_total, trigger_rule, past_blocked
), counted AS (
    SELECT run_id, count(*) AS n FROM created GROUP BY run_id
), started AS (
    UPDATE dag_run r SET
        state = CASE WHEN coalesce(c.n, 0) = 0 THEN 'success' ELSE 'running' END, unfinished = coalesce(c.n, 0),
        ended_at = CASE WHEN coalesce(c.n, 0) = 0 THEN now() END, started_at = now(),
        deadline_at = now() + make_interval(secs => run.run_timeout_seconds)
    FROM run LEFT JOIN counted c ON c.run_id = run.id WHERE r.id = run.id
    RETURNING r.id, r.state, r.run_type
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail)
    SELECT 'run', id::text, state, id, run_type FROM started
)
SELECT (SELECT count(*) FROM started) AS started,
       ARRAY(SELECT id FROM created WHERE kind = 'mapped' AND NOT past_blocked
             AND (upstream_total = 0 OR trigger_rule = 'always')) AS mapped
""")


def create_run(
    connection: Connection,
    dag_id: str,
    logical_date: dt.datetime,
    *,
    interval: tuple[dt.datetime, dt.datetime] | None = None,
    run_type: str = "manual",
    params: dict[str, Any] | None = None,
    bundle_version: str | None = None,
    queue: str | None = None,
    priority: int = 0,
    tasks: Sequence[str] | None = None,
    triggers: Sequence[dict[str, Any]] | None = None,
) -> int | None:
    """Create a run and start it; None if the DAG has a run of this logical date already.

    The run takes the DAG's active bundle version unless one is named. `queue` sends every task of the run to one
    queue, whatever the DAG says (heartbeat runs of a node). `priority` is added to that of each task. `tasks` are
    all that the run consists of. `triggers` are the asset events that made it.

    Where the DAG has as many active runs as it may have, the run is queued:
    `start_runs` starts it when another one has ended.
    """
    limit = connection.execute(_LIMIT, {"dag_id": dag_id}).scalar()
    start, end = interval or (logical_date, logical_date)
    run_id: int | None = connection.execute(
        _CREATE,
        {
            "dag_id": dag_id,
            "version": bundle_version,
            "logical_date": logical_date,
            "interval_start": start,
            "interval_end": end,
            "run_type": run_type,
            "params": json.dumps(params or {}),
            "queue": queue,
            "priority": priority,
            "tasks": list(tasks) if tasks is not None else None,
            "triggers": None if triggers is None else json.dumps(list(triggers)),
        },
    ).scalar()
    if run_id is None:
        return None
    room = {"dag_id": dag_id, "limit": limit, "id": run_id}
    if limit is not None and not connection.execute(_ROOM_NOW, room).scalar_one():
        connection.execute(_QUEUED, {"subject": str(run_id), "id": run_id, "type": run_type})
    else:
        _start(connection, [run_id])
    notify(connection)
    return run_id


def _start(connection: Connection, run_ids: Sequence[int]) -> int:
    row = connection.execute(_START, {"ids": list(run_ids)}).one()
    if row.mapped:
        propagate(connection, expand(connection, row.mapped).over)
    return int(row.started)


# One DAG a call, so that the row that is locked is the only one: its limit is looked at by nobody else meanwhile.
_WAITING = text("""
SELECT d.dag_id, d.max_active_runs FROM dag d
WHERE EXISTS (SELECT 1 FROM dag_run r WHERE r.dag_id = d.dag_id AND r.state = 'queued')
  AND d.dag_id > :after
ORDER BY d.dag_id LIMIT 1 FOR UPDATE SKIP LOCKED
""")
_ROOM = text("""
SELECT id FROM dag_run WHERE dag_id = :dag_id AND state = 'queued'
ORDER BY priority DESC, (run_type = 'backfill'), id
LIMIT greatest(0, least(100, coalesce(CAST(:limit AS int), 100)
    - CASE WHEN CAST(:limit AS int) IS NULL THEN 0
      ELSE (SELECT count(*) FROM dag_run WHERE dag_id = :dag_id AND state = 'running') END))
""")


def start_runs(connection: Connection, after: str = "") -> tuple[str, int] | None:
    """Start queued runs of the first DAG after `after` that has some, as many as its limit lets.

    Those of higher priority first, backfills last, else the oldest. Returns the DAG and how many were started; None
    if no further DAG has queued runs. At most 100 runs a call.
    """
    row = connection.execute(_WAITING, {"after": after}).one_or_none()
    if row is None:
        return None
    ids = list(connection.execute(_ROOM, {"dag_id": row.dag_id, "limit": row.max_active_runs}).scalars())
    started = _start(connection, ids) if ids else 0
    if started:
        notify(connection)
    return row.dag_id, started
