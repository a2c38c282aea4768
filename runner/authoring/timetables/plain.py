"""Timetables as a DAG's options give them and as the database keeps them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import UTC, Timetable, TimetableError
from runner.authoring.timetables.combine import Except, Intersection, Union
from runner.authoring.timetables.cron import Cron
from runner.authoring.timetables.dates import Dates
from runner.authoring.timetables.every import Every
from runner.authoring.timetables.manual import Manual
from runner.authoring.timetables.market import Market
from runner.authoring.timetables.once import Once
from runner.authoring.timetables.sessions import Sessions

Plain = str | dict[str, Any] | None

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)


def coerce(schedule: object) -> Timetable:
    """The timetable that a `schedule=` option means. Raises AuthoringError."""
    if schedule is None:
        return Manual()
    if isinstance(schedule, str):
        return Cron(schedule)
    if isinstance(schedule, dt.timedelta):
        return Every(schedule)
    if not isinstance(schedule, Timetable):
        raise AuthoringError(f"schedule must be a cron expression, a timedelta, a timetable or None, not {schedule!r}")
    if schedule.days:
        raise AuthoringError(f"schedule {schedule} has days without a time; say when: Cron('30 9 * * *') & …")
    return schedule


def to_plain(timetable: Timetable, *, timezone: str, start: dt.datetime | None) -> Plain:
    """None for Manual, the expression for a Cron in the DAG's own zone, else a JSON object.

    The object says everything, zones and anchors too; `text` is how people read it.
    """
    if isinstance(timetable, Manual):
        return None
    if isinstance(timetable, Cron) and timetable.timezone in (None, timezone):
        return timetable.expression
    return {**timetable.resolved(timezone, start or _EPOCH).to_json(), "text": str(timetable)}


def from_plain(plain: Plain, timezone: str) -> Timetable:
    """The inverse of `to_plain`. Raises TimetableError for what this release does not know."""
    try:
        if plain is None:
            return Manual()
        return Cron(plain, timezone) if isinstance(plain, str) else _parse(plain)
    except AuthoringError as e:
        raise TimetableError(e.what) from None
    except (KeyError, TypeError, ValueError) as e:
        raise TimetableError(f"not a timetable ({type(e).__name__}: {e}): {plain}") from None


_TYPES: dict[str, Callable[[dict[str, Any]], Timetable]] = {
    "cron": lambda d: Cron(d["expression"], d["timezone"]),
    "every": lambda d: Every(dt.timedelta(seconds=d["seconds"]), _time(d["anchor"])),
    "once": lambda d: Once(dt.datetime.fromisoformat(d["at"])),
    "manual": lambda d: Manual(),
    "dates": lambda d: Dates(d["dates"], d["timezone"]),
    "sessions": lambda d: Sessions(d["exchange"]),
    "market": lambda d: Market(d["exchange"], d["at"], dt.timedelta(seconds=d["offset_seconds"]), d["half_days"]),
    "union": lambda d: Union(*map(_parse, d["of"])),
    "intersection": lambda d: Intersection(*map(_parse, d["of"])),
    "except": lambda d: Except(*map(_parse, d["of"])),
}


def _parse(data: dict[str, Any]) -> Timetable:
    make = _TYPES.get(data["type"])
    if make is None:
        raise TimetableError(f"unknown timetable {data['type']!r}; it needs a newer release")
    return make(data)


def _time(text: str | None) -> dt.datetime | None:
    return None if text is None else dt.datetime.fromisoformat(text)
