"""When a DAG's next run is due: its timetable, from its start on. Pure.

The logical date of a run is the instant it is scheduled for. Its data interval is the time that ended there, since
the instant before (the data of which is there by then), or a market's session.
"""

from __future__ import annotations

import datetime as dt

from runner.authoring import DagSpec
from runner.authoring.timetables.base import TICK


def after(spec: DagSpec, instant: dt.datetime) -> dt.datetime | None:
    """The first scheduled instant later than `instant` and not before the DAG's start; None if there is none.

    Raises TimetableError, as all of these.
    """
    if spec.start:
        instant = max(instant, dt.datetime.fromisoformat(spec.start) - TICK)
    return spec.timetable().after(instant)


def latest(spec: DagSpec, due: dt.datetime, now: dt.datetime) -> dt.datetime:
    """The newest instant that is not in the future, at least `due`, without walking through all between."""
    return max(due, spec.timetable().before(now + TICK) or due)


def interval(spec: DagSpec, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """The data interval of a run, start included, end not."""
    return spec.timetable().interval(logical_date)


def first(spec: DagSpec, now: dt.datetime) -> dt.datetime | None:
    """Where a newly scheduled DAG begins: at its start if it catches up, else with the next instant from now on."""
    if spec.catchup and spec.start:
        return after(spec, dt.datetime.fromisoformat(spec.start) - TICK)
    return after(spec, now)
