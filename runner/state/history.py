"""What was changed in an environment, when and by whom, and what became of the tasks that ran meanwhile.

The figures are counted from the events, which are written with the transitions they tell of: a task is lost if an
attempt of it began, never ended, and is not running.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from runner.settings import UsageError


@dataclass(frozen=True)
class Tasks:
    """What became of the tasks that ran during a change: so many in all, handed on to another node, lost."""

    in_flight: int
    handed_on: int
    lost: int


@dataclass(frozen=True)
class Change:
    """One line of the history. kind: code, release or infra. seconds: None while it goes on."""

    id: str
    kind: str
    action: str
    target: str
    before: str | None
    after: str | None
    who: str
    at: dt.datetime
    seconds: float | None
    state: str
    tasks: Tasks | None = None  # None: not known


_CODE = text("""
SELECT id, at, target, before, after, who, detail ->> 'action' AS action, detail -> 'in_flight' AS in_flight
FROM deploy WHERE kind = 'code' AND id = coalesce(CAST(:id AS bigint), id) ORDER BY id DESC LIMIT :limit
""")
_CODE_LOST = text("""
SELECT d.id, count(*) FROM deploy d, jsonb_array_elements(d.detail -> 'in_flight') AS x
WHERE d.id = ANY (:ids)
  AND NOT EXISTS (SELECT 1 FROM event e WHERE e.run_id = (x ->> 0)::bigint AND e.subject = x ->> 1 AND e.kind = 'task'
                  AND e.attempt = (x ->> 2)::int AND e.state <> 'running' AND e.at >= d.at)
  AND NOT EXISTS (SELECT 1 FROM task_instance t WHERE t.id = (x ->> 1)::bigint AND t.attempt = (x ->> 2)::int
                  AND t.state = 'running')
GROUP BY d.id
""")
_ROLLS = text("""
SELECT r.id, r.role, r.pool, r.release, r.state, r.created_by, r.created_at,
       CAST(extract(epoch FROM r.ended_at - r.created_at) AS float) AS seconds,
       coalesce((SELECT d.before FROM deploy d WHERE d.kind = 'release' AND d.at >= r.created_at
                 AND (d.detail ->> 'rollout')::bigint = r.id LIMIT 1),
                (SELECT s.args ->> 'before' FROM rollout_step s
                 WHERE s.rollout_id = r.id AND s.action = 'tag' ORDER BY s.seq LIMIT 1)) AS before
FROM rollout r WHERE r.id = coalesce(CAST(:id AS bigint), r.id) ORDER BY r.id DESC LIMIT :limit
""")
# Of a roll: the attempts on the nodes that it took out, from the moment it began to. Its steps name their instances.
_ROLL_TASKS = text("""
WITH taken AS (
    SELECT s.rollout_id, n.node_id, n.state, min(s.started_at) AS since
    FROM rollout_step s, jsonb_array_elements_text(s.args -> 'instances') AS i(instance)
    JOIN node n ON n.instance_id = i.instance OR n.node_id = i.instance
    WHERE s.rollout_id = ANY (:ids) AND s.started_at IS NOT NULL AND jsonb_typeof(s.args -> 'instances') = 'array'
    GROUP BY s.rollout_id, n.node_id, n.state
), span AS (
    SELECT r.id, (SELECT min(since) FROM taken t WHERE t.rollout_id = r.id) AS since,
           coalesce(r.ended_at, clock_timestamp()) AS until
    FROM rollout r WHERE r.id = ANY (:ids)
), said AS (
    SELECT span.id AS rollout_id, e.subject, e.run_id, e.attempt, e.state, e.detail
    FROM span JOIN event e ON e.at BETWEEN span.since AND span.until AND e.kind = 'task'
    JOIN taken t ON t.rollout_id = span.id AND t.node_id = e.node_id AND e.at >= t.since
), attempts AS (
    SELECT rollout_id, subject, run_id, attempt, bool_or(state <> 'running') AS ended,
           bool_or(state = 'ready' AND detail LIKE 'interrupted%') AS handed_on
    FROM said GROUP BY rollout_id, subject, run_id, attempt
    UNION
    SELECT t.rollout_id, i.id::text, i.run_id, i.attempt, false, false
    FROM taken t JOIN task_instance i ON i.state = 'running' AND i.node_id = t.node_id
)
SELECT a.rollout_id, count(*) AS in_flight, count(*) FILTER (WHERE a.handed_on) AS handed_on,
       count(*) FILTER (WHERE NOT a.ended AND NOT EXISTS (
           SELECT 1 FROM event e WHERE e.run_id = a.run_id AND e.subject = a.subject AND e.kind = 'task'
           AND e.attempt = a.attempt AND e.state <> 'running' AND e.node_id IS NOT NULL)
         AND NOT EXISTS (
           SELECT 1 FROM task_instance i JOIN node n ON n.node_id = i.node_id
           WHERE i.id = a.subject::bigint AND i.attempt = a.attempt AND i.state = 'running' AND n.state <> 'gone')
       ) AS lost
FROM attempts a GROUP BY a.rollout_id
""")
_SPAN_TASKS = text("""
WITH attempts AS (
    SELECT subject, run_id, attempt, bool_or(state <> 'running') AS ended,
           bool_or(state = 'ready' AND detail LIKE 'interrupted%') AS handed_on
    FROM event WHERE at BETWEEN :since AND :until AND kind = 'task' AND node_id IS NOT NULL
    GROUP BY subject, run_id, attempt
)
SELECT count(*) AS in_flight, count(*) FILTER (WHERE handed_on) AS handed_on,
       count(*) FILTER (WHERE NOT ended AND NOT EXISTS (
           SELECT 1 FROM event e WHERE e.run_id = a.run_id AND e.subject = a.subject AND e.kind = 'task'
           AND e.attempt = a.attempt AND e.state <> 'running' AND e.node_id IS NOT NULL)
         AND NOT EXISTS (
           SELECT 1 FROM task_instance i
           WHERE i.id = a.subject::bigint AND i.attempt = a.attempt AND i.state = 'running')) AS lost
FROM attempts a
""")


def code(connection: Connection, limit: int = 20, deploy: int | None = None) -> list[Change]:
    """The versions of pipeline code that became active, newest first; or the one with this number."""
    rows = connection.execute(_CODE, {"limit": limit, "id": deploy}).all()
    lost = {row[0]: row[1] for row in connection.execute(_CODE_LOST, {"ids": [r.id for r in rows]})}
    return [
        Change(
            f"code-{r.id}",
            "code",
            r.action or "push",
            r.target,
            r.before,
            r.after,
            r.who,
            r.at,
            0.0,
            "succeeded",
            # An active version changes between two claims: nothing is interrupted by it.
            None if r.in_flight is None else Tasks(len(r.in_flight), 0, lost.get(r.id, 0)),
        )
        for r in rows
    ]


def rolls(connection: Connection, limit: int = 20, rollout: int | None = None) -> list[Change]:
    """The rollouts, newest first, however they ended; or the one with this number."""
    rows = connection.execute(_ROLLS, {"limit": limit, "id": rollout}).all()
    counted = {
        row.rollout_id: Tasks(row.in_flight, row.handed_on, row.lost)
        for row in connection.execute(_ROLL_TASKS, {"ids": [r.id for r in rows]})
    }
    return [
        Change(
            f"roll-{r.id}",
            "release",
            "roll",
            f"{r.role}/{r.pool}",
            r.before,
            r.release,
            r.created_by,
            r.created_at,
            r.seconds,
            r.state,
            counted.get(r.id, Tasks(0, 0, 0)),
        )
        for r in rows
    ]


def recent(connection: Connection, limit: int = 20) -> list[Change]:
    """What the database knows of changes, newest first: code and releases."""
    found = [*code(connection, limit), *rolls(connection, limit)]
    return sorted(found, key=lambda c: c.at, reverse=True)[:limit]


def tasks_between(connection: Connection, since: dt.datetime, until: dt.datetime) -> Tasks:
    """What became of the tasks that began or ended in this span, on all nodes."""
    row = connection.execute(_SPAN_TASKS, {"since": since, "until": until}).one()
    return Tasks(row.in_flight, row.handed_on, row.lost)


def find(connection: Connection, kind: str, number: int) -> Change:
    """One change. Raises UsageError if there is none."""
    found: Sequence[Change] = (code if kind == "code" else rolls)(connection, 1, number)
    if not found:
        raise UsageError(f"no {kind}-{number} in the history", "`deployctl history` lists what there is")
    return found[0]


def later(connection: Connection, change: Change) -> Change | None:
    """The newest change of the same thing, if that is not this one."""
    if change.kind == "code":
        which, name = "kind = 'code' AND target = :target", "code"
        statement = f"SELECT id FROM deploy WHERE {which} ORDER BY id DESC LIMIT 1"
    else:
        which, name = "role || '/' || pool = :target AND state = 'succeeded'", "release"
        statement = f"SELECT id FROM rollout WHERE {which} ORDER BY id DESC LIMIT 1"
    newest = connection.execute(text(statement), {"target": change.target}).scalar()
    if newest is None or int(change.id.partition("-")[2]) >= newest:
        return None
    return find(connection, name, newest)
