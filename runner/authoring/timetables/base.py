"""What every timetable and every calendar of days can do, and how they combine."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import TYPE_CHECKING, Any

from runner.authoring.errors import AuthoringError

if TYPE_CHECKING:
    from runner.authoring.timetables.combine import Except, Intersection, Union

UTC = dt.UTC
TICK = dt.timedelta(microseconds=1)  # the smallest step of a datetime
FAR = dt.datetime(9999, 1, 1, tzinfo=UTC)  # "never again", where a time must stand
_LONGEST_GAP = dt.timedelta(days=60 * 366)


class TimetableError(Exception):
    """A timetable that cannot say when: an exchange or a library that is missing, a year beyond what is known."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


class Timetable:
    """Instants at which a DAG runs. Frozen plain data; every time in and out is aware, what comes out is UTC.

    A *calendar* (`days` is true) is a set of days instead: it has no time of day, so it cannot be a schedule by
    itself, it narrows one: `Cron("30 9 * * *") & Sessions("XNYS")`.
    """

    days = False

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        """The first instant later than `instant`; None if there is none. Raises TimetableError."""
        raise NotImplementedError

    def before(self, instant: dt.datetime) -> dt.datetime | None:
        """The last instant earlier than `instant`; None if there is none within 60 years. Raises TimetableError."""
        probe = dt.timedelta(minutes=1)
        found = None
        while probe < _LONGEST_GAP and not found:
            found = self._within(instant - probe, instant)
            probe *= 4
        end = instant
        while found:  # halve what is left: a walk through every instant could be long
            following = self._within(found, instant)
            if not following:
                return found
            found = following
            later = self._within(found + (end - found) / 2, end)
            if later:
                found = later
            else:
                end = found + (end - found) / 2
        return None

    def _within(self, start: dt.datetime, end: dt.datetime) -> dt.datetime | None:
        found = self.after(start)
        return found if found and found < end else None

    def on(self, instant: dt.datetime) -> tuple[bool, dt.datetime]:
        """Whether `instant` is one of these (for a calendar: falls on one of its days), and a time until which
        that stays so at least. Raises TimetableError.
        """
        found = self.after(instant - TICK)
        return (True, instant + TICK) if found == instant else (False, found or FAR)

    def interval(self, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
        """The data interval of the run at `logical_date`, start included, end not: the time since the instant
        before, of which all data can be there; a market's session is its own. Raises TimetableError.
        """
        return self.session(logical_date) or (self.before(logical_date) or logical_date, logical_date)

    def session(self, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
        """Open and close of the market session that `logical_date` belongs to; None if it is not of a market."""
        return None

    def resolved(self, timezone: str, anchor: dt.datetime) -> Timetable:
        """The same with what was left open filled in: the DAG's zone, and the start that intervals count from."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values. `runner.authoring.timetables.from_plain` is the inverse."""
        raise NotImplementedError

    def __or__(self, other: Timetable) -> Union:
        from runner.authoring.timetables.combine import Union

        return Union(self, other)

    def __and__(self, other: Timetable) -> Intersection:
        from runner.authoring.timetables.combine import Intersection

        return Intersection(self, other)

    def __sub__(self, other: Timetable) -> Except:
        from runner.authoring.timetables.combine import Except

        return Except(self, other)


def check_zone(name: str, timezone: object) -> None:
    """Raise AuthoringError unless it is an IANA zone."""
    try:
        zoneinfo.ZoneInfo(timezone)  # type: ignore[arg-type]
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise AuthoringError(f"{name}: unknown time zone {timezone!r}; e.g. Europe/Berlin") from None


def check_aware(name: str, at: object) -> None:
    """Raise AuthoringError unless it is a datetime with a zone."""
    if not isinstance(at, dt.datetime):
        raise AuthoringError(f"{name} must be a datetime, not {at!r}")
    if at.utcoffset() is None:
        raise AuthoringError(f"{name} {at.isoformat()} has no time zone; add tzinfo=timezone.utc")


def midnight(day: dt.date, zone: dt.tzinfo) -> dt.datetime:
    """When `day` begins in `zone`, in UTC."""
    return dt.datetime.combine(day, dt.time(), tzinfo=zone).astimezone(UTC)


def duration_text(duration: dt.timedelta) -> str:
    """E.g. 1d 6h, 15m, -5m, 1.5s."""
    seconds = abs(duration).total_seconds()
    days, rest = divmod(seconds, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = [f"{n:g}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")) if n]
    return ("-" if duration < dt.timedelta(0) else "") + (" ".join(parts) or "0s")
