"""Duty: create the runs whose time has come, once, however many schedulers look."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import structlog
from sqlalchemy import Connection, Row, text

from runner.authoring import DagSpec
from runner.authoring.timetables import TimetableError
from runner.authoring.timetables.base import FAR
from runner.scheduler import timetable
from runner.state import transitions

log = structlog.get_logger(__name__)

RETRY_SECONDS = 60.0
_broken: dict[str, float] = {}  # DAG whose timetable could not be asked → when to try again, on the monotonic clock

_DUE = text("""
SELECT d.dag_id, d.bundle_version, d.next_run_at, v.spec, now() AS now,
       (SELECT count(*) FROM dag_run r WHERE r.dag_id = d.dag_id AND r.state = 'running') AS running
FROM dag d JOIN dag_version v USING (dag_id, bundle_version)
WHERE d.active AND NOT d.paused AND d.schedule IS NOT NULL AND (d.next_run_at IS NULL OR d.next_run_at <= now())
  AND d.dag_id <> ALL (:broken)
ORDER BY d.next_run_at NULLS FIRST LIMIT 50
FOR UPDATE OF d SKIP LOCKED
""")
_NEXT = text("UPDATE dag SET next_run_at = :at WHERE dag_id = :dag_id")


def create_runs(connection: Connection) -> int:
    """Create at most one due run for each of up to 50 DAGs and set when they are due again.

    Without catch-up a DAG that is behind takes only its latest instant. Returns the number of runs that were due;
    call again while it is not 0. A DAG whose timetable cannot be asked (an exchange's calendar ends, a library is
    missing) is left as it is and tried again a minute later; the others go on.
    """
    for dag_id in [d for d, until in _broken.items() if until <= time.monotonic()]:
        del _broken[dag_id]
    rows = connection.execute(_DUE, {"broken": list(_broken)}).all()
    seen = 0
    for row in rows:
        spec = DagSpec.from_json(row.spec)
        try:
            seen += _create_run(connection, row, spec)
        except TimetableError as e:
            _broken[row.dag_id] = time.monotonic() + RETRY_SECONDS
            log.error("bad timetable", action="create_runs", dag=row.dag_id, error=e.what)
    return seen


def _create_run(connection: Connection, row: Row[Any], spec: DagSpec) -> bool:
    if row.next_run_at is None:
        _set_next(connection, row.dag_id, timetable.first(spec, row.now))
        return False
    if spec.max_active_runs is not None and row.running >= spec.max_active_runs:
        return False  # stays due until a run of it ends
    due = row.next_run_at if spec.catchup else timetable.latest(spec, row.next_run_at, row.now)
    interval = timetable.interval(spec, due)
    run = transitions.create_run(connection, row.dag_id, due, interval=interval, run_type="scheduled")
    log.info("run created", action="create_runs", dag=row.dag_id, logical_date=due.isoformat(), run=run)
    try:
        _set_next(connection, row.dag_id, timetable.after(spec, due))
    except TimetableError:
        connection.execute(_NEXT, {"dag_id": row.dag_id, "at": None})  # this run counts; the next is asked for again
        raise
    return True


def _set_next(connection: Connection, dag_id: str, at: dt.datetime | None) -> None:
    # NULL means not known yet, so "never again" is a time that does not come.
    connection.execute(_NEXT, {"dag_id": dag_id, "at": at or FAR})
