"""Every change of a run's or a task's state, each one guarded set-based statement that leaves an event.

    waiting → ready → queued → running → success | failed | skipped
    waiting → skipped | upstream_failed         by its trigger rule
    running → ready                             a retry, or an interrupted attempt (uses no retry)
    queued  → ready                             refused by a node that drains

All functions take a Connection inside the caller's transaction. Locks are taken in one order everywhere: runs by
id, then task instances by id. Times come from the database's clock, never from a node's.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, text

from runner.state.db import CHANNEL

Result = Literal["success", "failed", "skipped", "interrupted"]


@dataclass(frozen=True)
class Message:
    """What goes to the broker: no code, no data, only which attempt of which task instance is due."""

    task_instance: int
    attempt: int
    queue: str


@dataclass(frozen=True)
class Claim:
    """A task instance this node may now run, until its lease ends."""

    task_instance: int
    attempt: int
    token: uuid.UUID
    run_id: int
    dag_id: str
    task_id: str
    bundle_version: str
    try_number: int
    interruptions: int
    timeout_seconds: float | None
    logical_date: dt.datetime
    interval_start: dt.datetime
    interval_end: dt.datetime
    params: dict[str, Any]
    inputs: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. `value` is the return value as JSON text, `error` one line for people.

    `retry=False` on a failure says that trying again is pointless. `interrupted` means that the infrastructure
    ended the attempt: it goes back to ready and no retry is used up.
    """

    task_instance: int
    token: uuid.UUID
    result: Result
    value: str | None = None
    error: str | None = None
    retry: bool = True


def notify(connection: Connection) -> None:
    """Wake the schedulers when this transaction commits. Repeated in one transaction it costs nothing more."""
    connection.execute(text(f"SELECT pg_notify('{CHANNEL}', '')"))


# --- runs -----------------------------------------------------------------------------------------------------

_CREATE_RUN = text("""
WITH version AS (
    SELECT dag_id, coalesce(CAST(:version AS text), bundle_version) AS bundle_version
    FROM dag WHERE dag_id = :dag_id
), run AS (
    INSERT INTO dag_run (dag_id, bundle_version, logical_date, interval_start, interval_end, run_type, params,
                         state, unfinished, ended_at)
    SELECT v.dag_id, v.bundle_version, :logical_date, :interval_start, :interval_end, :run_type,
           CAST(:params AS jsonb), CASE WHEN n.n = 0 THEN 'success' ELSE 'running' END, n.n,
           CASE WHEN n.n = 0 THEN now() END
    FROM version v, LATERAL (
        SELECT count(*) AS n FROM dag_task t WHERE t.dag_id = v.dag_id AND t.bundle_version = v.bundle_version) n
    ON CONFLICT (dag_id, logical_date) DO NOTHING
    RETURNING id, dag_id, bundle_version, state
), created AS (
    INSERT INTO task_instance (run_id, dag_id, task_id, bundle_version, state, queue, priority, trigger_rule, leaf,
                               upstream_total, waiting_on, max_tries, retry_delay_seconds, timeout_seconds,
                               available_at)
    SELECT run.id, run.dag_id, t.task_id, run.bundle_version,
           CASE WHEN t.upstream_total = 0 OR t.trigger_rule = 'always' THEN 'ready' ELSE 'waiting' END,
           coalesce(CAST(:queue AS text), t.queue), t.priority, t.trigger_rule, t.leaf, t.upstream_total,
           t.upstream_total, t.max_tries, t.retry_delay_seconds, t.timeout_seconds,
           CASE WHEN t.upstream_total = 0 OR t.trigger_rule = 'always' THEN now() END
    FROM run JOIN dag_task t USING (dag_id, bundle_version)
    ORDER BY t.task_id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail)
    SELECT 'run', run.id::text, run.state, run.id, CAST(:run_type AS text) FROM run
)
SELECT id FROM run
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
) -> int | None:
    """Create a run and all its task instances; None if the DAG has a run of this logical date already.

    The run takes the DAG's active bundle version unless one is named. `queue` sends every task of the run to one
    queue, whatever the DAG says (heartbeat runs of a node).
    """
    start, end = interval or (logical_date, logical_date)
    run_id: int | None = connection.execute(
        _CREATE_RUN,
        {
            "dag_id": dag_id,
            "version": bundle_version,
            "logical_date": logical_date,
            "interval_start": start,
            "interval_end": end,
            "run_type": run_type,
            "params": json.dumps(params or {}),
            "queue": queue,
        },
    ).scalar()
    if run_id is not None:
        notify(connection)
    return run_id


# --- dispatch -------------------------------------------------------------------------------------------------

# Who could take a task, by queue: workers that are ready and were heard of within :fresh seconds.
LIVE_SLOTS = """live AS (
    SELECT q.queue, sum(n.slots) AS slots, count(*) AS nodes
    FROM node n JOIN node_heartbeat h USING (node_id), unnest(n.queues) AS q(queue)
    WHERE n.role = 'worker' AND n.state = 'ready' AND h.at > now() - make_interval(secs => :fresh)
    GROUP BY q.queue
)"""

# A queue may hold about twice the tasks that its live slots can run: workers never wait for the next one, and
# everything else (priorities, fairness, a lost message) is still decided here and not in the broker.
_DISPATCH = text(f"""
WITH {LIVE_SLOTS}, inflight AS (
    SELECT queue, count(*) AS n FROM task_instance WHERE state IN ('queued', 'running') GROUP BY queue
), room AS (
    SELECT live.queue, 2 * live.slots - coalesce(inflight.n, 0) AS room
    FROM live LEFT JOIN inflight USING (queue)
), picked AS (
    SELECT t.id FROM room, LATERAL (
        SELECT id FROM task_instance
        WHERE state = 'ready' AND queue = room.queue AND available_at <= now()
        ORDER BY priority DESC, id LIMIT greatest(room.room, 0)
        FOR UPDATE SKIP LOCKED) t
), queued AS (
    UPDATE task_instance t SET state = 'queued', attempt = attempt + 1, queued_at = now(), published_at = now()
    FROM picked WHERE t.id = picked.id
    RETURNING t.id, t.attempt, t.queue, t.run_id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt)
    SELECT 'task', id::text, 'queued', run_id, attempt FROM queued
)
SELECT id, attempt, queue FROM queued ORDER BY id
""")

# Queued and still not claimed although the queue has idle slots: its message is lost, or was never sent.
_RESEND = text(f"""
WITH {LIVE_SLOTS}, running AS (
    SELECT queue, count(*) AS n FROM task_instance WHERE state = 'running' GROUP BY queue
), late AS (
    SELECT t.id FROM task_instance t JOIN live USING (queue) LEFT JOIN running USING (queue)
    WHERE t.state = 'queued' AND t.published_at < now() - make_interval(secs => CASE
        WHEN coalesce(running.n, 0) < live.slots THEN :idle_after ELSE :busy_after END)
    ORDER BY t.id LIMIT 500
    FOR UPDATE OF t SKIP LOCKED
)
UPDATE task_instance t SET published_at = now() FROM late WHERE t.id = late.id
RETURNING t.id, t.attempt, t.queue
""")


def dispatch(connection: Connection, *, fresh_seconds: float = 15.0) -> list[Message]:
    """Queue as many ready tasks as each queue's live slots can soon take. Publish them after the commit."""
    rows = connection.execute(_DISPATCH, {"fresh": fresh_seconds})
    return [Message(*row) for row in rows]


def resend(
    connection: Connection, *, idle_after: float = 3.0, busy_after: float = 60.0, fresh_seconds: float = 15.0
) -> list[Message]:
    """Queued tasks whose message seems lost, to be published again: the same attempt, so twice does no harm.

    A message counts as lost `idle_after` seconds after it was sent while its queue has idle slots, else
    `busy_after` seconds after.
    """
    rows = connection.execute(_RESEND, {"fresh": fresh_seconds, "idle_after": idle_after, "busy_after": busy_after})
    return [Message(*row) for row in rows]


# --- claim ----------------------------------------------------------------------------------------------------

# The gate row is locked for the length of the claim, and a cordon updates that row: one of the two comes first,
# and a claim that comes second finds no ready node.
_CLAIM = text("""
WITH gate AS (
    SELECT node_id FROM node WHERE node_id = :node_id AND state = 'ready' FOR SHARE
), claimed AS (
    UPDATE task_instance t
    SET state = 'running', node_id = gate.node_id, lease_token = gen_random_uuid(), started_at = now(),
        ended_at = NULL, error = NULL, lease_expires_at = now() + make_interval(secs => :lease)
    FROM gate WHERE t.id = :id AND t.attempt = :attempt AND t.state = 'queued'
    RETURNING t.id, t.attempt, t.lease_token, t.run_id, t.dag_id, t.task_id, t.bundle_version, t.tries + 1 AS try,
              t.interruptions, t.timeout_seconds, t.node_id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt, node_id)
    SELECT 'task', id::text, 'running', run_id, attempt, node_id FROM claimed
)
SELECT c.id, c.attempt, c.lease_token, c.run_id, c.dag_id, c.task_id, c.bundle_version, c.try, c.interruptions,
       c.timeout_seconds, r.logical_date, r.interval_start, r.interval_end, r.params,
       (SELECT coalesce(jsonb_object_agg(x.task_id, x.value), '{}')
        FROM dag_task d JOIN xcom x ON x.run_id = c.run_id AND x.task_id = ANY (d.inputs)
        WHERE d.dag_id = c.dag_id AND d.bundle_version = c.bundle_version AND d.task_id = c.task_id
          AND d.inputs <> '{}') AS inputs
FROM claimed c JOIN dag_run r ON r.id = c.run_id
""")


def claim(
    connection: Connection, task_instance: int, attempt: int, *, node_id: str, lease_seconds: float
) -> Claim | None:
    """Take a queued attempt for this node, with a fencing token and a lease.

    None if there is nothing to take (another worker has it, it is over, the message is a duplicate) or if the node
    is not `ready`; `release` tells the two apart.
    """
    row = connection.execute(
        _CLAIM, {"id": task_instance, "attempt": attempt, "node_id": node_id, "lease": lease_seconds}
    ).one_or_none()
    return Claim(*row) if row else None


def release(connection: Connection, task_instance: int, attempt: int) -> bool:
    """Put a queued attempt back to ready at once: the node that got its message may not take it."""
    row = connection.execute(
        text("""
        WITH released AS (
            UPDATE task_instance SET state = 'ready', available_at = now()
            WHERE id = :id AND attempt = :attempt AND state = 'queued' RETURNING id, run_id, attempt
        ), recorded AS (
            INSERT INTO event (kind, subject, state, run_id, attempt, detail)
            SELECT 'task', id::text, 'ready', run_id, attempt, 'refused by a node that is not ready' FROM released
        )
        SELECT id FROM released"""),
        {"id": task_instance, "attempt": attempt},
    ).one_or_none()
    if row:
        notify(connection)
    return row is not None


# --- finish ---------------------------------------------------------------------------------------------------

_LOCK_RUNS = text("""
SELECT id FROM dag_run WHERE id IN (SELECT run_id FROM task_instance WHERE id = ANY (:ids))
ORDER BY id FOR NO KEY UPDATE
""")

_LOCK_INSTANCES = text("""
WITH finished AS (
    SELECT run_id, dag_id, bundle_version, task_id FROM task_instance WHERE id = ANY (:ids)
), affected AS (
    SELECT unnest(CAST(:ids AS bigint[])) AS id
    UNION
    SELECT d.id FROM finished f
    JOIN dag_edge e ON e.dag_id = f.dag_id AND e.bundle_version = f.bundle_version AND e.upstream = f.task_id
    JOIN task_instance d ON d.run_id = f.run_id AND d.task_id = e.downstream
)
SELECT id FROM task_instance WHERE id IN (SELECT id FROM affected) ORDER BY id FOR NO KEY UPDATE
""")

_FINISH = text("""
WITH outcome AS (
    SELECT * FROM jsonb_to_recordset(CAST(:outcomes AS jsonb))
        AS o(id bigint, token uuid, result text, error text, retry boolean)
), finished AS (
    UPDATE task_instance t SET
        state = CASE
            WHEN o.result = 'interrupted' THEN 'ready'
            WHEN o.result = 'failed' AND o.retry AND t.tries + 1 < t.max_tries THEN 'ready'
            ELSE o.result END,
        tries = t.tries + CASE WHEN o.result IN ('failed', 'success') THEN 1 ELSE 0 END,
        interruptions = t.interruptions + CASE WHEN o.result = 'interrupted' THEN 1 ELSE 0 END,
        available_at = CASE
            WHEN o.result = 'interrupted' THEN now()
            ELSE now() + make_interval(secs => t.retry_delay_seconds) END,
        lease_token = NULL, lease_expires_at = NULL, ended_at = now(), error = o.error
    FROM outcome o
    WHERE t.id = o.id AND t.lease_token = o.token AND t.state = 'running'
    RETURNING t.id, t.state, t.run_id, t.attempt, t.node_id, t.error, t.leaf, o.token, o.result
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt, node_id, detail)
    SELECT 'task', id::text, state, run_id, attempt, node_id,
           CASE WHEN state = 'ready' THEN concat_ws(': ', CASE result WHEN 'interrupted' THEN 'interrupted'
                ELSE 'will be retried' END, error) ELSE error END
    FROM finished
)
SELECT id, state, run_id, leaf, token FROM finished
""")

_STORE_VALUES = text("""
INSERT INTO xcom (run_id, task_id, map_index, value)
SELECT t.run_id, t.task_id, t.map_index, v.value
FROM jsonb_to_recordset(CAST(:values AS jsonb)) AS v(id bigint, value jsonb)
JOIN task_instance t ON t.id = v.id
ON CONFLICT (run_id, task_id, map_index) DO UPDATE SET value = excluded.value
""")

# The trigger rules (authoring.rules.decide says the same for one task, and is what the tests hold this against), on
# the counters as they stand after this step. w: still to end, f: failed, s: skipped, ok: succeeded.
_PROPAGATE = text("""
WITH finished AS (
    SELECT run_id, dag_id, bundle_version, task_id, state FROM task_instance WHERE id = ANY (:ids)
), moved AS (
    SELECT f.run_id, e.downstream, count(*) AS n,
           count(*) FILTER (WHERE f.state IN ('failed', 'upstream_failed')) AS failed,
           count(*) FILTER (WHERE f.state = 'skipped') AS skipped
    FROM finished f
    JOIN dag_edge e ON e.dag_id = f.dag_id AND e.bundle_version = f.bundle_version AND e.upstream = f.task_id
    GROUP BY f.run_id, e.downstream
), counted AS (
    SELECT t.id, t.trigger_rule AS rule, t.waiting_on - m.n AS w, t.upstream_failed + m.failed AS f,
           t.upstream_skipped + m.skipped AS s,
           t.upstream_total - (t.waiting_on - m.n) - (t.upstream_failed + m.failed)
               - (t.upstream_skipped + m.skipped) AS ok
    FROM moved m JOIN task_instance t ON t.run_id = m.run_id AND t.task_id = m.downstream
    WHERE t.state = 'waiting'
), decided AS (
    SELECT *, CASE rule
        WHEN 'all_success' THEN CASE WHEN f > 0 THEN 'upstream_failed' WHEN w > 0 THEN 'waiting'
                                     WHEN s > 0 THEN 'skipped' ELSE 'ready' END
        WHEN 'all_failed' THEN CASE WHEN ok + s > 0 THEN 'skipped' WHEN w = 0 THEN 'ready' ELSE 'waiting' END
        WHEN 'all_skipped' THEN CASE WHEN ok + f > 0 THEN 'skipped' WHEN w = 0 THEN 'ready' ELSE 'waiting' END
        WHEN 'all_done' THEN CASE WHEN w = 0 THEN 'ready' ELSE 'waiting' END
        WHEN 'one_success' THEN CASE WHEN ok > 0 THEN 'ready' WHEN w > 0 THEN 'waiting'
                                     WHEN f > 0 THEN 'upstream_failed' ELSE 'skipped' END
        WHEN 'one_failed' THEN CASE WHEN f > 0 THEN 'ready' WHEN w > 0 THEN 'waiting' ELSE 'skipped' END
        WHEN 'one_done' THEN CASE WHEN ok + f > 0 THEN 'ready' WHEN w > 0 THEN 'waiting' ELSE 'skipped' END
        WHEN 'none_failed' THEN CASE WHEN f > 0 THEN 'upstream_failed' WHEN w > 0 THEN 'waiting' ELSE 'ready' END
        WHEN 'none_skipped' THEN CASE WHEN s > 0 THEN 'skipped' WHEN w > 0 THEN 'waiting' ELSE 'ready' END
        WHEN 'none_failed_min_one_success' THEN CASE WHEN f > 0 THEN 'upstream_failed' WHEN w > 0 THEN 'waiting'
                                                     WHEN ok > 0 THEN 'ready' ELSE 'skipped' END
        END AS decision
    FROM counted
), updated AS (
    UPDATE task_instance t SET
        waiting_on = d.w, upstream_failed = d.f, upstream_skipped = d.s, state = d.decision,
        available_at = CASE WHEN d.decision = 'ready' THEN now() END,
        ended_at = CASE WHEN d.decision IN ('skipped', 'upstream_failed') THEN now() END
    FROM decided d WHERE t.id = d.id
    RETURNING t.id, t.state, t.run_id, t.leaf
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id)
    SELECT 'task', id::text, state, run_id FROM updated WHERE state <> 'waiting'
)
SELECT id, state, run_id, leaf FROM updated
""")

_COUNT_DOWN_RUNS = text("""
WITH done AS (
    SELECT * FROM jsonb_to_recordset(CAST(:done AS jsonb)) AS d(run_id bigint, n int, failed int)
), updated AS (
    UPDATE dag_run r SET
        unfinished = r.unfinished - d.n, failed_leaves = r.failed_leaves + d.failed,
        state = CASE WHEN r.unfinished > d.n THEN 'running'
                     WHEN r.failed_leaves + d.failed > 0 THEN 'failed' ELSE 'success' END,
        ended_at = CASE WHEN r.unfinished <= d.n THEN now() END
    FROM done d WHERE r.id = d.run_id
    RETURNING r.id, r.state
)
INSERT INTO event (kind, subject, state, run_id)
SELECT 'run', id::text, state, id FROM updated WHERE state <> 'running'
""")


def finish(connection: Connection, outcomes: Sequence[Outcome]) -> set[uuid.UUID]:
    """End these attempts, count their downstream tasks down and mark what became ready, in one transaction.

    Returns the tokens that were accepted. A token that is missing is stale: its lease was taken away, and what the
    attempt did is to be kept only as evidence.
    """
    if not outcomes:
        return set()
    ids = [o.task_instance for o in outcomes]
    connection.execute(_LOCK_RUNS, {"ids": ids})
    connection.execute(_LOCK_INSTANCES, {"ids": ids})
    payload = [
        {"id": o.task_instance, "token": str(o.token), "result": o.result, "error": o.error, "retry": o.retry}
        for o in outcomes
    ]
    rows = connection.execute(_FINISH, {"outcomes": json.dumps(payload)}).all()
    accepted = {row.token for row in rows}
    values = [
        f'{{"id":{o.task_instance},"value":{o.value}}}'
        for o in outcomes
        if o.value is not None and o.result == "success" and o.token in accepted
    ]
    if values:
        connection.execute(_STORE_VALUES, {"values": f"[{','.join(values)}]"})
    over = [row for row in rows if row.state != "ready"]
    _propagate(connection, over)
    if len(over) < len(rows):
        notify(connection)  # a retry or an interrupted attempt waits for a scheduler
    return accepted


def _propagate(connection: Connection, over: Iterable[Any]) -> None:
    """Carry finished instances down the graph, level by level while whole levels skip or fail."""
    runs: dict[int, list[int]] = {}
    level = list(over)
    while level:
        for row in level:
            counts = runs.setdefault(row.run_id, [0, 0])
            counts[0] += 1
            counts[1] += row.leaf and row.state in ("failed", "upstream_failed")
        moved = connection.execute(_PROPAGATE, {"ids": [row.id for row in level]})
        level = [row for row in moved if row.state in ("skipped", "upstream_failed")]
    if runs:
        done = [{"run_id": r, "n": n, "failed": f} for r, (n, f) in sorted(runs.items())]
        connection.execute(_COUNT_DOWN_RUNS, {"done": json.dumps(done)})


# --- lost -----------------------------------------------------------------------------------------------------

_INTERRUPT = """
WITH lost AS (
    SELECT t.id FROM task_instance t {which} ORDER BY t.id LIMIT 500 FOR UPDATE OF t SKIP LOCKED
), interrupted AS (
    UPDATE task_instance t SET state = 'ready', interruptions = interruptions + 1, available_at = now(),
        lease_token = NULL, lease_expires_at = NULL, ended_at = now(), error = :cause
    FROM lost WHERE t.id = lost.id
    RETURNING t.id, t.run_id, t.attempt, t.node_id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt, node_id, detail)
    SELECT 'task', id::text, 'ready', run_id, attempt, node_id, 'interrupted: ' || :cause FROM interrupted
)
SELECT count(*) FROM interrupted
"""
_INTERRUPT_LEASES = text(
    _INTERRUPT.format(
        which="""JOIN jsonb_to_recordset(CAST(:leases AS jsonb)) AS l(token uuid, expires timestamptz)
        ON t.lease_token = l.token AND t.lease_expires_at = l.expires WHERE t.state = 'running'"""
    )
)
_INTERRUPT_NODE = text(_INTERRUPT.format(which="WHERE t.state = 'running' AND t.node_id = :node_id"))

Lease = tuple[uuid.UUID, dt.datetime]


def leases(connection: Connection) -> set[Lease]:
    """All leases in force: their token and the end that was last written for them."""
    rows = connection.execute(text("SELECT lease_token, lease_expires_at FROM task_instance WHERE state = 'running'"))
    return {(row[0], row[1]) for row in rows}


def interrupt_leases(connection: Connection, expired: Iterable[Lease]) -> int:
    """Hand on the tasks of these leases, unless one was renewed since it was read. Returns how many."""
    payload = [{"token": str(token), "expires": end.isoformat()} for token, end in expired]
    if not payload:
        return 0
    return _interrupt(connection, _INTERRUPT_LEASES, {"leases": json.dumps(payload), "cause": "lease expired"})


def interrupt_node(connection: Connection, node_id: str, cause: str) -> int:
    """Hand on what this node was running; returns how many tasks.

    Only on proof that none of it runs any more: the node is dead, or says so itself after a new start.
    """
    return _interrupt(connection, _INTERRUPT_NODE, {"node_id": node_id, "cause": cause})


def _interrupt(connection: Connection, statement: Any, values: dict[str, Any]) -> int:
    n: int = connection.execute(statement, values).scalar_one()
    if n:
        notify(connection)
    return n
