"""Read-only views of the state, for the web pages, the REST API and both CLIs.

Each function is one or two set-based statements whose cost follows what is shown, never the size of the history:
lists are paged by key, counts stand on partial indexes. Rows come back as the dataclasses of views.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runner.state.transitions import LIVE_SLOTS
from runner.state.views import (
    Counts,
    DagDetail,
    DagRow,
    EventRow,
    NodeRow,
    QueueRow,
    RecentRun,
    RunDetail,
    RunRow,
    TaskDetail,
    TaskRow,
    to_json,
)

__all__ = [
    "Counts",
    "DagDetail",
    "DagRow",
    "EventRow",
    "NodeRow",
    "QueueRow",
    "RecentRun",
    "RunDetail",
    "RunRow",
    "TaskDetail",
    "TaskRow",
    "to_json",
]

FRESH_SECONDS = 15.0  # a node heard of within this time counts as live, as in transitions.dispatch


# --- DAGs -----------------------------------------------------------------------------------------------------

_DAG_COLUMNS = """
    d.dag_id, coalesce(v.spec ->> 'description', '') AS description,
    coalesce(v.spec -> 'tags', '[]') AS tags, d.bundle, d.bundle_version, d.active, d.paused, d.schedule,
    coalesce(v.spec ->> 'timezone', 'UTC') AS timezone,
    nullif(d.next_run_at, '9999-01-01 00:00+00') AS next_run_at,  -- that is: never again
    (SELECT count(*) FROM dag_task t WHERE t.dag_id = d.dag_id AND t.bundle_version = d.bundle_version
     AND t.kind <> 'callback') AS tasks,
    (SELECT coalesce(jsonb_agg(jsonb_build_object(
                'id', r.id, 'state', r.state,
                'logical_date', to_char(r.logical_date AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
                ORDER BY r.logical_date DESC), '[]')
     FROM (SELECT id, state, logical_date FROM dag_run
           WHERE dag_id = d.dag_id ORDER BY logical_date DESC LIMIT :recent) r) AS recent
"""
_DAGS = text(f"""
WITH d AS MATERIALIZED (
    SELECT * FROM dag
    WHERE (active OR NOT :active_only) AND dag_id > :after
      AND (CAST(:search AS text) IS NULL OR position(lower(:search) IN lower(dag_id)) > 0)
    ORDER BY dag_id LIMIT :limit
)
SELECT {_DAG_COLUMNS}
FROM d LEFT JOIN dag_version v USING (dag_id, bundle_version)
ORDER BY d.dag_id
""")
_DAG = text(f"""
SELECT {_DAG_COLUMNS}, coalesce(v.spec, '{{}}') AS spec
FROM dag d LEFT JOIN dag_version v USING (dag_id, bundle_version)
WHERE d.dag_id = :dag_id
""")


def dags(
    connection: Connection,
    *,
    active_only: bool = True,
    search: str | None = None,
    after: str = "",
    limit: int = 200,
    recent: int = 10,
) -> list[DagRow]:
    """DAGs by id, each with its `recent` last runs. `after` is the last id of the page before."""
    values = {"active_only": active_only, "search": search or None, "after": after, "limit": limit, "recent": recent}
    return [_dag(DagRow, row) for row in connection.execute(_DAGS, values).mappings()]


def dag(connection: Connection, dag_id: str, *, recent: int = 10) -> DagDetail | None:
    """One DAG with its spec, None if there is none of this id."""
    row = connection.execute(_DAG, {"dag_id": dag_id, "recent": recent}).mappings().one_or_none()
    return _dag(DagDetail, row) if row else None


def _dag(kind: Any, row: Any) -> Any:
    return kind(**{**row, "recent": [RecentRun(**r) for r in row["recent"]]})


# --- runs -----------------------------------------------------------------------------------------------------

_RUN_SELECT = """
, version AS (
    SELECT v.dag_id, v.bundle_version, count(t.task_id) AS tasks
    FROM (SELECT DISTINCT dag_id, bundle_version FROM page) v LEFT JOIN dag_task t
        ON t.dag_id = v.dag_id AND t.bundle_version = v.bundle_version AND t.kind <> 'callback'
    GROUP BY v.dag_id, v.bundle_version
)
SELECT p.id, p.dag_id, p.bundle_version, p.logical_date, p.interval_start, p.interval_end, p.run_type, p.params,
       p.state, v.tasks, p.unfinished, p.created_at, p.ended_at,
       CAST(extract(epoch FROM coalesce(p.ended_at, now()) - p.created_at) AS float) AS seconds
FROM page p JOIN version v USING (dag_id, bundle_version)
"""
# Of one DAG by logical date (its unique key is the index), of all by id. A page ends the scan, so a list costs what
# it shows.
_RUNS_OF_DAG = f"""
WITH page AS MATERIALIZED (
    SELECT * FROM dag_run WHERE dag_id = :dag_id {{state}}
      AND logical_date < coalesce((SELECT logical_date FROM dag_run WHERE id = CAST(:before AS bigint)), 'infinity')
    ORDER BY logical_date DESC LIMIT :limit
) {_RUN_SELECT} ORDER BY p.logical_date DESC
"""
_RUNS = f"""
WITH page AS MATERIALIZED (
    SELECT * FROM dag_run WHERE id < coalesce(CAST(:before AS bigint), 9223372036854775807) {{state}}
    ORDER BY id DESC LIMIT :limit
) {_RUN_SELECT} ORDER BY p.id DESC
"""
_RUN = text(f"WITH page AS MATERIALIZED (SELECT * FROM dag_run WHERE id = :run_id) {_RUN_SELECT}")
_TASK_COLUMNS = """
    t.id, t.run_id, t.dag_id, t.task_id, t.map_index, t.state, t.queue, t.priority, t.attempt, t.tries, t.max_tries,
    t.interruptions, t.available_at, t.queued_at, t.started_at, t.ended_at,
    CASE WHEN t.started_at IS NULL THEN NULL
         WHEN t.state = 'running' THEN CAST(extract(epoch FROM now() - t.started_at) AS float)
         ELSE CAST(extract(epoch FROM t.ended_at - t.started_at) AS float) END AS seconds,
    t.node_id, t.error
"""
# What needs a person first, then what moves, then what is over.
_TASKS = text(f"""
SELECT {_TASK_COLUMNS} FROM task_instance t
WHERE t.run_id = :run_id AND (CAST(:states AS text[]) IS NULL OR t.state = ANY (CAST(:states AS text[])))
ORDER BY array_position(ARRAY['failed', 'running', 'queued', 'ready', 'waiting', 'upstream_failed', 'skipped',
                              'success'], t.state),
         CASE WHEN t.state = 'success' THEN t.ended_at END DESC, t.task_id, t.map_index
LIMIT :limit OFFSET :offset
""")
_TASK_COUNTS = text("SELECT state, count(*) FROM task_instance WHERE run_id = :run_id GROUP BY state")


def runs(
    connection: Connection,
    dag_id: str | None = None,
    state: str | None = None,
    *,
    limit: int = 50,
    before_id: int | None = None,
) -> list[RunRow]:
    """The last runs, newest first; of one DAG ordered by logical date. `before_id` is the last id of the page
    before."""
    # As a literal of the statement, so that a partial index can serve it; almost every run is a success.
    clause = {None: "", "running": "AND state = 'running'", "failed": "AND state = 'failed'"}.get(
        state, "AND state = :state"
    )
    statement = text((_RUNS if dag_id is None else _RUNS_OF_DAG).format(state=clause))
    values = {"dag_id": dag_id, "state": state, "limit": limit, "before": before_id}
    used = {k: v for k, v in values.items() if f":{k}" in statement.text}
    return [RunRow(**row) for row in connection.execute(statement, used).mappings()]


def run(
    connection: Connection,
    run_id: int,
    *,
    states: Sequence[str] | None = None,
    limit: int = 10_000,
    offset: int = 0,
) -> RunDetail | None:
    """One run with its task instances, those that need a person first; None if there is none of this id.

    `states` picks the task instances by state; `counts` stays complete.
    """
    row = connection.execute(_RUN, {"run_id": run_id}).mappings().one_or_none()
    if row is None:
        return None
    counts = {state: n for state, n in connection.execute(_TASK_COUNTS, {"run_id": run_id})}
    values = {"run_id": run_id, "states": list(states) if states else None, "limit": limit, "offset": offset}
    tasks = [TaskRow(**task) for task in connection.execute(_TASKS, values).mappings()] if limit else []
    return RunDetail(**row, counts=counts, task_instances=tasks)


def task_states(connection: Connection, run_id: int) -> dict[str, str]:
    """The state of each task of a run by its id; of a mapped task the state of one of its instances."""
    found = connection.execute(text("SELECT task_id, state FROM task_instance WHERE run_id = :id"), {"id": run_id})
    return {task_id: state for task_id, state in found}


def task_of(connection: Connection, run_id: int, task_id: str) -> int | None:
    """The id of a run's task instance by the task's name, the first of a mapped one; None if there is none."""
    statement = text("""
        SELECT id FROM task_instance WHERE run_id = :run_id AND task_id = :task_id ORDER BY map_index LIMIT 1""")
    found: int | None = connection.execute(statement, {"run_id": run_id, "task_id": task_id}).scalar()
    return found


def spec(connection: Connection, dag_id: str, bundle_version: str) -> dict[str, Any] | None:
    """What a DAG looked like in one bundle version, authoring.spec.DagSpec as JSON. It never changes."""
    statement = text("SELECT spec FROM dag_version WHERE dag_id = :dag_id AND bundle_version = :version")
    found: dict[str, Any] | None = connection.execute(statement, {"dag_id": dag_id, "version": bundle_version}).scalar()
    return found


# --- events and attempts --------------------------------------------------------------------------------------

_TASK = text(f"""
SELECT {_TASK_COLUMNS}, t.bundle_version, t.trigger_rule, t.waiting_on, t.timeout_seconds, r.logical_date
FROM task_instance t JOIN dag_run r ON r.id = t.run_id WHERE t.id = :id
""")
_EVENT_COLUMNS = "id, at, kind, subject, state, run_id, attempt, node_id, detail"
_TASK_EVENTS = text(f"""
SELECT {_EVENT_COLUMNS} FROM event
WHERE run_id = :run_id AND kind = 'task' AND subject = CAST(:id AS text) ORDER BY id
""")
_EVENTS_AFTER = text(f"""
SELECT {_EVENT_COLUMNS} FROM event WHERE id > :after ORDER BY id LIMIT :limit
""")
_EVENTS_AMONG = text(f"SELECT {_EVENT_COLUMNS} FROM event WHERE id = ANY (CAST(:ids AS bigint[])) ORDER BY id")
_EVENTS_LAST = text(f"""
SELECT {_EVENT_COLUMNS} FROM event WHERE id < coalesce(CAST(:before AS bigint), 9223372036854775807)
ORDER BY id DESC LIMIT :limit
""")


def task_instance(connection: Connection, task_instance_id: int) -> TaskDetail | None:
    """One task instance with the events of all its attempts; None if there is none of this id."""
    row = connection.execute(_TASK, {"id": task_instance_id}).mappings().one_or_none()
    if row is None:
        return None
    found = connection.execute(_TASK_EVENTS, {"run_id": row["run_id"], "id": task_instance_id}).mappings()
    return TaskDetail(**row, events=[EventRow(**e) for e in found])


def events(connection: Connection, after_id: int, limit: int = 1000) -> list[EventRow]:
    """Events with a greater id, in the order of their ids.

    Ids are given before a transaction commits, so an event with a smaller id may still appear: a reader that must
    not miss one asks for the gaps again with `events_among`.
    """
    return [EventRow(**e) for e in connection.execute(_EVENTS_AFTER, {"after": after_id, "limit": limit}).mappings()]


def events_among(connection: Connection, ids: Sequence[int]) -> list[EventRow]:
    """Those of these events that exist by now."""
    return [EventRow(**e) for e in connection.execute(_EVENTS_AMONG, {"ids": list(ids)}).mappings()]


def last_events(connection: Connection, limit: int = 50, before_id: int | None = None) -> list[EventRow]:
    """The newest events, newest first. `before_id` is the last id of the page before."""
    found = connection.execute(_EVENTS_LAST, {"before": before_id, "limit": limit}).mappings()
    return [EventRow(**e) for e in found]


def last_event_id(connection: Connection) -> int:
    """The greatest event id, 0 before the first."""
    n: int = connection.execute(text("SELECT coalesce(max(id), 0) FROM event")).scalar_one()
    return n


# --- fleet ----------------------------------------------------------------------------------------------------

# Ages are measured by the database's clock, so they hold on a machine whose own clock is wrong.
_NODE_SELECT = """
SELECT n.node_id, n.role, n.pool, n.state, n.reason, n.requested_by, n.deadline_at,
       CAST(extract(epoch FROM n.deadline_at - clock_timestamp()) AS float) AS seconds_left,
       n.release, n.slots, n.queues,
       (SELECT count(*) FROM task_instance t WHERE t.state = 'running' AND t.node_id = n.node_id) AS running,
       CAST(extract(epoch FROM clock_timestamp() - h.at) AS float) AS heartbeat_age_seconds,
       coalesce(h.at > clock_timestamp() - make_interval(secs => :fresh), false) AS live,
       n.instance_id, n.address, n.registered_at, n.changed_at,
       CAST(extract(epoch FROM clock_timestamp() - n.changed_at) AS float) AS changed_seconds, n.after_drain
FROM node n LEFT JOIN node_heartbeat h USING (node_id)
"""
_NODE = text(f"{_NODE_SELECT} WHERE n.node_id = :node_id")
_MACHINE = text(f"""
{_NODE_SELECT} WHERE n.node_id = :machine OR n.node_id = :machine || '.' || n.release
ORDER BY n.registered_at, n.node_id
""")
_FLEET = text(f"""
{_NODE_SELECT}
WHERE n.state <> 'gone' AND (CAST(:role AS text) IS NULL OR n.role = :role)
  AND (CAST(:pools AS text[]) IS NULL OR n.pool = ANY (CAST(:pools AS text[])))
ORDER BY array_position(ARRAY['scheduler', 'web', 'worker'], n.role), n.pool, n.registered_at, n.node_id
""")
# The queues of single nodes (node.<id>) are shown only while something is on them.
_QUEUES = text(f"""
WITH waiting AS (
    SELECT queue, count(*) FILTER (WHERE state = 'ready') AS ready,
           count(*) FILTER (WHERE state = 'up_for_retry') AS delayed,
           CAST(extract(epoch FROM now() - min(ready_at) FILTER (WHERE state = 'ready')) AS float) AS oldest,
           sum(interruptions) AS interruptions
    FROM (SELECT queue, state, ready_at, interruptions FROM task_instance
          WHERE state IN ('ready', 'queued') AND admitted
          UNION ALL SELECT queue, state, ready_at, interruptions FROM task_instance
          WHERE state = 'ready' AND NOT admitted
          UNION ALL SELECT queue, state, ready_at, interruptions FROM task_instance WHERE state = 'up_for_retry') due
    WHERE state <> 'queued' GROUP BY queue
), inflight AS (
    SELECT queue, count(*) FILTER (WHERE state = 'queued') AS queued,
           count(*) FILTER (WHERE state = 'running') AS running,
           sum(interruptions) AS interruptions
    FROM task_instance WHERE state IN ('queued', 'running') GROUP BY queue
), {LIVE_SLOTS}
SELECT queue, coalesce(w.ready, 0) AS ready, coalesce(w.delayed, 0) AS delayed, coalesce(i.queued, 0) AS queued,
       coalesce(i.running, 0) AS running, coalesce(l.slots, 0) AS slots, coalesce(l.nodes, 0) AS nodes,
       w.oldest AS oldest_wait_seconds, coalesce(w.interruptions, 0) + coalesce(i.interruptions, 0) AS interruptions
FROM waiting w FULL JOIN inflight i USING (queue) FULL JOIN live l USING (queue)
WHERE w.queue IS NOT NULL OR i.queue IS NOT NULL OR queue NOT LIKE 'node.%'
ORDER BY queue
""")
_COUNTS = text("""
SELECT (SELECT count(*) FROM dag WHERE active) AS dags,
       (SELECT count(*) FROM dag_run WHERE state = 'running') AS runs_running,
       day.failed AS runs_failed_24h, day.success AS runs_success_24h,
       (SELECT count(*) FROM task_instance WHERE state IN ('ready', 'queued') AND admitted AND state = 'ready')
           + (SELECT count(*) FROM task_instance WHERE state = 'ready' AND NOT admitted) AS tasks_ready,
       (SELECT count(*) FROM task_instance WHERE state = 'queued') AS tasks_queued,
       (SELECT count(*) FROM task_instance WHERE state = 'running') AS tasks_running,
       fleet.nodes, fleet.live AS nodes_live, fleet.slots
FROM (SELECT count(*) FILTER (WHERE state = 'failed') AS failed, count(*) FILTER (WHERE state = 'success') AS success
      FROM dag_run WHERE created_at > now() - interval '24 hours') day,
     (SELECT count(*) AS nodes, count(h.node_id) AS live,
             coalesce(sum(n.slots) FILTER (WHERE n.role = 'worker' AND n.state IN ('ready', 'draining')
                                           AND h.node_id IS NOT NULL), 0) AS slots
      FROM node n LEFT JOIN node_heartbeat h
          ON h.node_id = n.node_id AND h.at > now() - make_interval(secs => :fresh)
      WHERE n.state <> 'gone') fleet
""")


def node(connection: Connection, node_id: str, *, fresh_seconds: float = FRESH_SECONDS) -> NodeRow | None:
    """One node, also one that is gone; None if it never registered."""
    row = connection.execute(_NODE, {"node_id": node_id, "fresh": fresh_seconds}).mappings().one_or_none()
    return NodeRow(**row) if row else None


def machine(connection: Connection, machine: str, *, fresh_seconds: float = FRESH_SECONDS) -> list[NodeRow]:
    """The nodes of one machine, also those that are gone, oldest first: its own, and those that came beside it."""
    values = {"machine": machine, "fresh": fresh_seconds}
    return [NodeRow(**row) for row in connection.execute(_MACHINE, values).mappings()]


def fleet(
    connection: Connection,
    *,
    role: str | None = None,
    pools: Sequence[str] | None = None,
    fresh_seconds: float = FRESH_SECONDS,
) -> list[NodeRow]:
    """The nodes that are not gone, of a role and of these pools: schedulers, web, then workers by pool, oldest first.

    A node that was heard of within `fresh_seconds` counts as live.
    """
    values = {"role": role, "pools": list(pools) if pools is not None else None, "fresh": fresh_seconds}
    return [NodeRow(**row) for row in connection.execute(_FLEET, values).mappings()]


def queues(connection: Connection, *, fresh_seconds: float = FRESH_SECONDS) -> list[QueueRow]:
    """All queues that hold work or that a live worker consumes."""
    return [QueueRow(**row) for row in connection.execute(_QUEUES, {"fresh": fresh_seconds}).mappings()]


def runs_running(connection: Connection) -> int:
    """How many runs are under way."""
    n: int = connection.execute(text("SELECT count(*) FROM dag_run WHERE state = 'running'")).scalar_one()
    return n


def counts(connection: Connection, *, fresh_seconds: float = FRESH_SECONDS) -> Counts:
    """How much is going on now."""
    return Counts(**connection.execute(_COUNTS, {"fresh": fresh_seconds}).mappings().one())
