"""When a DAG's next run is due. Pure."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from cronsim import CronSim

from runner.authoring import DagSpec

UTC = dt.UTC


def after(spec: DagSpec, instant: dt.datetime) -> dt.datetime | None:
    """The first scheduled instant later than `instant` and not before the DAG's start; None without a schedule.

    The cron expression is read in the DAG's zone. Where clocks change, a fixed hour that is skipped fires at the
    first instant after the gap, one that comes twice fires once (cronsim, as Debian's cron).
    """
    cron = spec.cron()
    if cron is None:
        return None
    start = dt.datetime.fromisoformat(spec.start) if spec.start else None
    if start and instant < start:
        instant = start - dt.timedelta(seconds=1)
    return next(CronSim(cron, instant.astimezone(ZoneInfo(spec.timezone)))).astimezone(UTC)


def interval(spec: DagSpec, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """The data interval of a run: from its scheduled instant to the next one."""
    return logical_date, after(spec, logical_date) or logical_date


def first(spec: DagSpec, now: dt.datetime) -> dt.datetime | None:
    """Where a newly scheduled DAG begins: at its start if it catches up, else with the next instant from now on."""
    if spec.catchup and spec.start:
        return after(spec, dt.datetime.fromisoformat(spec.start) - dt.timedelta(seconds=1))
    return after(spec, now)
