"""Waking idle slots, and giving back to the queue what waited for something."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, text

from runner.state.sql import Statement
from runner.state.transitions.admit import admit
from runner.state.transitions.propagate import lock_runs, settle
from runner.state.transitions.records import Message, notify

# Who could take a task, by queue: workers that are ready and were heard of within :fresh seconds.
LIVE_SLOTS = """live AS (
    SELECT q.queue, sum(n.slots) AS slots, count(*) AS nodes
    FROM node n JOIN node_heartbeat h USING (node_id), unnest(n.queues) AS q(queue)
    WHERE n.role = 'worker' AND n.state = 'ready' AND h.at > now() - make_interval(secs => :fresh)
    GROUP BY q.queue
)"""

# Slots that are at work take the next task by themselves, so only idle ones are woken: no more is queued than they
# can take, and everything else (priorities, fairness, a lost message) is decided here and not in the broker.
_DISPATCH = Statement(f"""
WITH {LIVE_SLOTS}, inflight AS (
    SELECT queue, count(*) AS n FROM task_instance WHERE state IN ('queued', 'running') GROUP BY queue
), room AS (
    SELECT live.queue, live.slots - coalesce(inflight.n, 0) AS room
    FROM live LEFT JOIN inflight USING (queue)
), picked AS (
    SELECT t.id FROM room, LATERAL (
        SELECT id FROM task_instance
        WHERE state = 'ready' AND admitted AND queue = room.queue
        ORDER BY priority DESC, id LIMIT greatest(room.room, 0)
        FOR UPDATE SKIP LOCKED) t
), queued AS (
    UPDATE task_instance t SET state = 'queued', attempt = attempt + 1, queued_at = now()
    FROM picked WHERE t.id = picked.id
    RETURNING t.id, t.attempt, t.queue, t.run_id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt)
    SELECT 'task', id::text, 'queued', run_id, attempt FROM queued
)
SELECT id, attempt, queue FROM queued ORDER BY id
""")


def dispatch(connection: Connection, *, fresh_seconds: float = 15.0) -> list[Message]:
    """Queue as many ready tasks as each queue's idle slots can take. Publish them after the commit."""
    return [Message(*row) for row in _DISPATCH(connection, {"fresh": fresh_seconds})]


class Queued(NamedTuple):
    """A message that is out, and whether its queue has idle slots that should have taken it."""

    message: Message
    idle: bool


_QUEUED = text(f"""
WITH {LIVE_SLOTS}, running AS (
    SELECT queue, count(*) AS n FROM task_instance WHERE state = 'running' GROUP BY queue
)
SELECT t.id, t.attempt, t.queue, coalesce(running.n, 0) < live.slots AS idle
FROM task_instance t JOIN live USING (queue) LEFT JOIN running USING (queue)
WHERE t.state = 'queued' ORDER BY t.id LIMIT 5000
""")


def queued(connection: Connection, *, fresh_seconds: float = 15.0) -> list[Queued]:
    """Every message that is out and that a live worker could answer."""
    rows = connection.execute(_QUEUED, {"fresh": fresh_seconds})
    return [Queued(Message(row.id, row.attempt, row.queue), row.idle) for row in rows]


def release(connection: Connection, task_instance: int, attempt: int) -> bool:
    """Put a queued attempt back to ready at once: the node that got its message may not take it."""
    row = connection.execute(
        text("""
        WITH released AS (
            UPDATE task_instance SET state = 'ready'
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


_WAKE = text("""
WITH due AS (
    SELECT id FROM task_instance WHERE state = 'up_for_retry' AND available_at <= now()
    ORDER BY available_at LIMIT 1000 FOR UPDATE SKIP LOCKED
), woken AS (
    UPDATE task_instance t SET state = 'ready', ready_at = now(), available_at = NULL, admitted = NOT limited
    FROM due WHERE t.id = due.id RETURNING t.id, t.run_id, t.attempt
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt)
    SELECT 'task', id::text, 'ready', run_id, attempt FROM woken
)
SELECT count(*) FROM woken
""")


def wake_retries(connection: Connection) -> int:
    """Make ready what has waited for its retry's delay; returns how many, at most 1,000 a call."""
    n: int = connection.execute(_WAKE).scalar_one()
    return n


_PAST = """
    FROM task_instance t JOIN dag_run r ON r.id = t.run_id
    WHERE t.state = 'waiting' AND t.past_blocked AND coalesce((
        SELECT p.state IN ('success', 'skipped') FROM task_instance p
        WHERE p.task_id = t.task_id AND p.map_index = -1 AND p.run_id = (
            SELECT q.id FROM dag_run q WHERE q.dag_id = r.dag_id AND q.logical_date < r.logical_date
            ORDER BY q.logical_date DESC LIMIT 1)), true)
"""
_PAST_RUNS = text(f"SELECT DISTINCT t.run_id {_PAST} ORDER BY 1 LIMIT 200")
_RELEASE_PAST = text(f"""
UPDATE task_instance SET past_blocked = false WHERE id IN (SELECT t.id {_PAST} AND t.run_id = ANY (:runs))
""")


def release_past(connection: Connection) -> int:
    """Let go what waited for its own task in the DAG's run before, where that has succeeded.

    Returns how many runs it has looked at, at most 200 a call.
    """
    runs = lock_runs(connection, connection.execute(_PAST_RUNS).scalars())
    if runs:
        connection.execute(_RELEASE_PAST, {"runs": runs})
        limited = [settle(connection, run_id).limited for run_id in runs]
        if any(limited):
            admit(connection)
        notify(connection)
    return len(runs)
