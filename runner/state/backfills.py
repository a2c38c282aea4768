"""Backfills as rows: filed once, taken on a few runs at a time, paused and cancelled."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from runner.settings import RefusedError, UsageError
from runner.state import transitions
from runner.state.transitions import notify

BATCH = 50  # runs started in one transaction


@dataclass(frozen=True)
class Instant:
    """One run of a backfill: its logical date and data interval. again: its run exists and is to be cleared."""

    logical_date: dt.datetime
    start: dt.datetime
    end: dt.datetime
    again: bool


@dataclass(frozen=True)
class BackfillRow:
    """A backfill and how far it is: of `total` runs these wait, are active, have succeeded, have failed."""

    id: int
    dag_id: str
    which: str
    state: str
    max_active: int
    tasks: list[str] | None
    total: int
    waiting: int
    active: int
    success: int
    failed: int
    first: dt.datetime | None
    last: dt.datetime | None
    created_by: str
    created_at: dt.datetime
    ended_at: dt.datetime | None


_FILE = text("""
WITH filed AS (
    INSERT INTO backfill (dag_id, which, max_active, priority, tasks, total, created_by)
    VALUES (:dag_id, :which, :max_active, :priority, CAST(:tasks AS text[]), :total, :by) RETURNING id
), runs AS (
    INSERT INTO backfill_run (backfill_id, seq, logical_date, interval_start, interval_end, again)
    SELECT filed.id, i.seq, i.date, i.start, i.end, i.again
    FROM filed, jsonb_to_recordset(CAST(:instants AS jsonb))
        AS i(seq int, date timestamptz, start timestamptz, "end" timestamptz, again boolean)
)
SELECT id FROM filed
""")


def file(
    connection: Connection,
    dag_id: str,
    instants: Sequence[Instant],
    *,
    which: str,
    max_active: int,
    priority: int,
    tasks: Sequence[str] | None,
    by: str,
) -> int:
    """Write a backfill down, in the order its runs are to start; returns its id. The schedulers do the rest."""
    rows = [
        {
            "seq": seq,
            "date": i.logical_date.isoformat(),
            "start": i.start.isoformat(),
            "end": i.end.isoformat(),
            "again": i.again,
        }
        for seq, i in enumerate(instants)
    ]
    values = {
        "dag_id": dag_id,
        "which": which,
        "max_active": max_active,
        "priority": priority,
        "tasks": list(tasks) if tasks is not None else None,
        "total": len(rows),
        "by": by,
        "instants": json.dumps(rows),
    }
    backfill_id: int = connection.execute(_FILE, values).scalar_one()
    notify(connection)
    return backfill_id


_EXISTING = text("""
SELECT logical_date, state FROM dag_run
WHERE dag_id = :dag_id AND logical_date BETWEEN :first AND :last
""")


def existing(connection: Connection, dag_id: str, first: dt.datetime, last: dt.datetime) -> dict[dt.datetime, str]:
    """The state of each run of a DAG in a span, by its logical date."""
    rows = connection.execute(_EXISTING, {"dag_id": dag_id, "first": first, "last": last})
    return {row.logical_date.astimezone(dt.UTC): row.state for row in rows}


# --- moving on ------------------------------------------------------------------------------------------------

_RUNNING = text("""
SELECT b.id, b.dag_id, b.max_active, b.priority, b.tasks, d.max_active_runs
FROM backfill b JOIN dag d USING (dag_id)
WHERE b.state = 'running' AND b.id > :after ORDER BY b.id LIMIT 1 FOR UPDATE OF b SKIP LOCKED
""")
_ACTIVE = text("""
SELECT count(*) AS runs, count(*) FILTER (WHERE EXISTS (
    SELECT 1 FROM backfill_run x WHERE x.run_id = r.id AND x.backfill_id = :id)) AS mine
FROM dag_run r WHERE r.dag_id = :dag_id AND r.state IN ('queued', 'running')
""")
_NEXT = text("""
SELECT seq, logical_date, interval_start, interval_end, again FROM backfill_run
WHERE backfill_id = :id AND NOT started ORDER BY seq LIMIT :room
""")
_STARTED = text("UPDATE backfill_run SET started = true, run_id = :run WHERE backfill_id = :id AND seq = :seq")
_RUN_OF = text("SELECT id, state FROM dag_run WHERE dag_id = :dag_id AND logical_date = :date")
_DONE = text("""
UPDATE backfill SET state = 'done', ended_at = now() WHERE id = :id AND state = 'running' RETURNING id
""")


def advance(connection: Connection, after: int = 0) -> tuple[int, int] | None:
    """Start what the first running backfill after `after` may start now, and end it when all its runs have ended.

    Never more than its own limit at once, nor than its DAG's: what is scheduled goes first. Returns its id and how
    many runs were started; None if there is no further one.
    """
    b = connection.execute(_RUNNING, {"after": after}).one_or_none()
    if b is None:
        return None
    active = connection.execute(_ACTIVE, {"id": b.id, "dag_id": b.dag_id}).one()
    room = min(b.max_active - active.mine, BATCH)
    if b.max_active_runs is not None:
        room = min(room, b.max_active_runs - active.runs)
    rows = connection.execute(_NEXT, {"id": b.id, "room": max(room, 0)}).all()
    started = 0
    for row in rows:
        run_id = None
        if not row.again:
            run_id = transitions.create_run(
                connection,
                b.dag_id,
                row.logical_date,
                interval=(row.interval_start, row.interval_end),
                run_type="backfill",
                priority=b.priority,
                tasks=b.tasks,
            )
        else:
            run = connection.execute(_RUN_OF, {"dag_id": b.dag_id, "date": row.logical_date}).one_or_none()
            if run is not None and run.state in ("success", "failed"):
                transitions.clear(connection, run.id, b.tasks, downstream=b.tasks is None, by=f"backfill {b.id}")
                run_id = run.id
        # Without a run: somebody else has made one since, or runs it right now. It is not ours to wait for.
        connection.execute(_STARTED, {"run": run_id, "id": b.id, "seq": row.seq})
        started += 1
    if not rows and room > 0 and active.mine == 0:
        connection.execute(_DONE, {"id": b.id})
    return b.id, started


# --- looking and switching ------------------------------------------------------------------------------------

_LIST = """
SELECT b.id, b.dag_id, b.which, b.state, b.max_active, b.tasks, b.total,
       count(*) FILTER (WHERE NOT x.started) AS waiting,
       count(*) FILTER (WHERE r.state IN ('queued', 'running')) AS active,
       count(*) FILTER (WHERE r.state = 'success') AS success,
       count(*) FILTER (WHERE r.state = 'failed') AS failed,
       min(x.logical_date) AS first, max(x.logical_date) AS last, b.created_by, b.created_at, b.ended_at
FROM (SELECT * FROM backfill WHERE {which} ORDER BY id DESC LIMIT :limit) b
LEFT JOIN backfill_run x ON x.backfill_id = b.id LEFT JOIN dag_run r ON r.id = x.run_id
GROUP BY b.id, b.dag_id, b.which, b.state, b.max_active, b.tasks, b.total, b.created_by, b.created_at, b.ended_at
ORDER BY b.id DESC
"""
_OF_DAG = text(_LIST.format(which="CAST(:dag_id AS text) IS NULL OR dag_id = :dag_id"))
_ONE = text(_LIST.format(which="id = :id"))


def recent(connection: Connection, dag_id: str | None = None, *, limit: int = 20) -> list[BackfillRow]:
    """The newest backfills, of one DAG or of all."""
    return [BackfillRow(*row) for row in connection.execute(_OF_DAG, {"dag_id": dag_id, "limit": limit})]


def get(connection: Connection, backfill_id: int) -> BackfillRow:
    """One backfill. Raises UsageError for an unknown id."""
    row = connection.execute(_ONE, {"id": backfill_id, "limit": 1}).one_or_none()
    if row is None:
        raise UsageError(f"there is no backfill {backfill_id}", "`runner backfills list` shows them")
    return BackfillRow(*row)


_SWITCH = text("""
UPDATE backfill SET state = :state, ended_at = CASE WHEN :state = 'cancelled' THEN now() END
WHERE id = :id AND state = ANY (:before) RETURNING id
""")
_BEFORE = {"paused": ["running"], "running": ["paused"], "cancelled": ["running", "paused"]}
_RUNS = text("""
SELECT r.id FROM backfill_run x JOIN dag_run r ON r.id = x.run_id
WHERE x.backfill_id = :id AND r.state IN ('queued', 'running') ORDER BY r.id
""")


def switch(connection: Connection, backfill_id: int, state: str, *, by: str, kill: bool = False) -> BackfillRow:
    """Pause, resume (`running`) or cancel; runs under way go on unless they are to be killed.

    Raises UsageError for an unknown id, RefusedError if it is over.
    """
    found = get(connection, backfill_id)
    changed = connection.execute(_SWITCH, {"id": backfill_id, "state": state, "before": _BEFORE[state]}).scalar()
    if changed is None and found.state != state:
        raise RefusedError(f"backfill {backfill_id} is {found.state}", f"it cannot become {state}")
    if kill:
        for run_id in connection.execute(_RUNS, {"id": backfill_id}).scalars().all():
            transitions.end_run(connection, run_id, why=f"backfill {backfill_id} was cancelled by {by}")
    notify(connection)
    return get(connection, backfill_id)
