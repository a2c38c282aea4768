"""Backfills: which runs one consists of (pure), and the duty that moves them on."""

from __future__ import annotations

import datetime as dt
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection

from runner.authoring import DagSpec
from runner.scheduler import timetable
from runner.settings import RefusedError, UsageError
from runner.state import backfills, queries
from runner.state.backfills import Instant

MOST = 100_000  # runs in one backfill
PRIORITY = -10  # added to that of each task: what is scheduled goes first
Which = Literal["missing", "failed", "all"]


@dataclass(frozen=True)
class Wish:
    """What somebody wants: the instants from `start` to `end`, both included. tasks: a pattern such as `load*`."""

    dag_id: str
    start: dt.datetime
    end: dt.datetime
    which: Which = "missing"
    max_active: int = 16
    reverse: bool = False
    tasks: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a backfill would do: its runs in order, and how many instants it leaves as they are."""

    instants: list[Instant]
    left: int
    tasks: list[str] | None


def span(spec: DagSpec, start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    """Every scheduled instant of a span. Raises RefusedError for more than MOST."""
    found: list[dt.datetime] = []
    at = timetable.after(spec, start - dt.timedelta(microseconds=1))
    while at is not None and at <= end:
        if len(found) >= MOST:
            raise RefusedError(
                f"a backfill of {spec.dag_id} from {start:%Y-%m-%d} to {end:%Y-%m-%d} is more than {MOST:,} runs",
                "take a shorter span, one after the other",
            )
        found.append(at)
        at = timetable.after(spec, at)
    return found


def choose(
    dates: list[dt.datetime],
    runs: Mapping[dt.datetime, str],
    which: Which,
    interval: Callable[[dt.datetime], tuple[dt.datetime, dt.datetime]],
    *,
    reverse: bool = False,
) -> list[Instant]:
    """Which of these dates are to be run, given the states of the runs that exist. Pure.

    missing: those without a run. failed: those and the failed ones. all: every one that is not under way.
    """
    wanted = {"missing": (), "failed": ("failed",), "all": ("failed", "success")}[which]
    chosen = [
        Instant(date, *interval(date), again=date in runs) for date in dates if date not in runs or runs[date] in wanted
    ]
    return chosen[::-1] if reverse else chosen


def plan(connection: Connection, wish: Wish) -> Plan:
    """What this backfill would do. Raises UsageError for a wish that makes no sense, RefusedError for too many runs."""
    found = queries.dag(connection, wish.dag_id)
    if found is None:
        raise UsageError(f"no DAG {wish.dag_id!r}", "`runner dag list` shows what there is")
    spec = DagSpec.from_json(found.spec)
    if spec.schedule is None:
        raise UsageError(f"DAG {wish.dag_id!r} has no schedule, so it has no instants to fill", "`runner dag trigger`")
    if wish.end < wish.start:
        raise UsageError(f"the span ends ({wish.end.isoformat()}) before it begins ({wish.start.isoformat()})")
    if wish.max_active < 1:
        raise UsageError(f"max_active must be 1 or more, not {wish.max_active}")
    tasks = None
    if wish.tasks is not None:
        tasks = [t.task_id for t in spec.tasks if fnmatch.fnmatchcase(t.task_id, wish.tasks)]
        if not tasks:
            raise UsageError(
                f"no task of {wish.dag_id!r} matches {wish.tasks!r}",
                "its tasks: " + ", ".join(t.task_id for t in spec.tasks[:20]),
            )
    dates = span(spec, wish.start, wish.end)
    runs = backfills.existing(connection, wish.dag_id, dates[0], dates[-1]) if dates else {}
    chosen = choose(dates, runs, wish.which, lambda date: timetable.interval(spec, date), reverse=wish.reverse)
    return Plan(chosen, len(dates) - len(chosen), tasks)


def start(connection: Connection, wish: Wish, planned: Plan, *, by: str) -> int | None:
    """File a planned backfill; returns its id, None if there is nothing to run."""
    if not planned.instants:
        return None
    return backfills.file(
        connection,
        wish.dag_id,
        planned.instants,
        which=wish.which,
        max_active=wish.max_active,
        priority=PRIORITY,
        tasks=planned.tasks,
        by=by,
    )
