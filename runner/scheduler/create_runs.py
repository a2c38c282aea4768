"""Duty: create the runs whose time has come, once, however many schedulers look."""

from __future__ import annotations

import datetime as dt

import structlog
from sqlalchemy import Connection, text

from runner.authoring import DagSpec
from runner.scheduler import timetable
from runner.state import transitions

log = structlog.get_logger(__name__)

_DUE = text("""
SELECT d.dag_id, d.bundle_version, d.next_run_at, v.spec, now() AS now,
       (SELECT count(*) FROM dag_run r WHERE r.dag_id = d.dag_id AND r.state = 'running') AS running
FROM dag d JOIN dag_version v USING (dag_id, bundle_version)
WHERE d.active AND NOT d.paused AND d.schedule IS NOT NULL AND (d.next_run_at IS NULL OR d.next_run_at <= now())
ORDER BY d.next_run_at NULLS FIRST LIMIT 50
FOR UPDATE OF d SKIP LOCKED
""")
_NEXT = text("UPDATE dag SET next_run_at = :at WHERE dag_id = :dag_id")


def create_runs(connection: Connection) -> int:
    """Create at most one due run for each of up to 50 DAGs and set when they are due again.

    Without catch-up a DAG that is behind takes only its latest instant. Returns the number of DAGs looked at; call
    again while it is not 0.
    """
    rows = connection.execute(_DUE).all()
    seen = 0
    for row in rows:
        spec = DagSpec.from_json(row.spec)
        if row.next_run_at is None:
            connection.execute(_NEXT, {"dag_id": row.dag_id, "at": timetable.first(spec, row.now)})
            continue
        if spec.max_active_runs is not None and row.running >= spec.max_active_runs:
            continue  # stays due until a run of it ends
        due = row.next_run_at if spec.catchup else _latest(spec, row.next_run_at, row.now)
        run = transitions.create_run(
            connection, row.dag_id, due, interval=timetable.interval(spec, due), run_type="scheduled"
        )
        connection.execute(_NEXT, {"dag_id": row.dag_id, "at": timetable.after(spec, due)})
        seen += 1
        log.info("run created", action="create_runs", dag=row.dag_id, logical_date=due.isoformat(), run=run)
    return seen


def _latest(spec: DagSpec, due: dt.datetime, now: dt.datetime) -> dt.datetime:
    """The newest instant that is not in the future, found without walking through all that were missed."""
    probe = dt.timedelta(minutes=1)
    while now - probe > due:
        found = timetable.after(spec, now - probe)
        if found and found <= now:
            due = max(due, found)
            break
        probe *= 4
    following = timetable.after(spec, due)
    while following and following <= now:
        due, following = following, timetable.after(spec, following)
    return due
