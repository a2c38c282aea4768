"""`latest_only`: a gate for what makes no sense for the past."""

from __future__ import annotations

import datetime as dt

from runner.authoring.context import Context
from runner.authoring.dag import current_dag
from runner.authoring.errors import AuthoringError, Skip
from runner.authoring.task import Output, task


def latest_only(task_id: str = "latest_only") -> Output:
    """Add a task that skips what comes after it, unless its run is the newest of the schedule.

    `latest_only() >> send_report(...)`: in a backfill, and in a run so late that the next one is due already, the
    report is skipped. A run started by hand for the present goes on. Raises AuthoringError outside of a DAG.
    """
    dag = current_dag()
    if dag is None:
        raise AuthoringError("latest_only() was called outside of a DAG")
    timetable = dag.timetable

    @task(task_id=task_id)
    def check(context: Context) -> None:
        following = timetable.after(context.logical_date)
        if following and following <= dt.datetime.now(dt.UTC):
            raise Skip(f"not the latest run: the one of {following.isoformat()} is due already")

    return check()
