"""`Market`: the open or the close of every session of an exchange."""

from __future__ import annotations

import bisect
import datetime as dt
from dataclasses import dataclass
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import Timetable, duration_text
from runner.authoring.timetables.sessions import Session, check_exchange, first_year, sessions_of_year

HALF_DAYS = ("include", "skip", "only")
_TWO_DAYS = dt.timedelta(days=2)


@dataclass(frozen=True)
class Market(Timetable):
    """`offset` after (if negative: before) each session's open or close; the data interval is the session.

    `half_days`, the sessions that close early: "include" (at their own close), "skip" or "only". `exchange` is an
    ISO code that exchange_calendars knows (the `calendars` extra).
    """

    exchange: str
    at: str = "close"
    offset: dt.timedelta = dt.timedelta(0)
    half_days: str = "include"

    def __post_init__(self) -> None:
        check_exchange(self.exchange)
        if self.at not in ("open", "close"):
            raise AuthoringError(f"Market: at must be 'open' or 'close', not {self.at!r}")
        if self.half_days not in HALF_DAYS:
            raise AuthoringError(f"Market: half_days must be one of {', '.join(HALF_DAYS)}, not {self.half_days!r}")
        if not isinstance(self.offset, dt.timedelta) or abs(self.offset) > dt.timedelta(days=7):
            raise AuthoringError(f"Market: offset must be a timedelta of up to 7 days, not {self.offset!r}")

    def __str__(self) -> str:
        sign = "" if self.offset < dt.timedelta(0) else "+"
        offset = f" {sign}{duration_text(self.offset)}" if self.offset else ""
        half = {"include": "", "skip": ", full days", "only": ", half-days"}[self.half_days]
        return f"{self.exchange} {self.at}{offset}{half}"

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        found = self._next(instant)
        return found and self._time(found)

    def session(self, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
        found = self._next(logical_date - dt.timedelta(microseconds=1))
        return (found.open, found.close) if found and self._time(found) == logical_date else None

    def _time(self, session: Session) -> dt.datetime:
        return (session.open if self.at == "open" else session.close) + self.offset

    def _next(self, instant: dt.datetime) -> Session | None:
        # A session may open on the day before its own and close on the day after.
        year = max((instant - self.offset - _TWO_DAYS).year, first_year(self.exchange))
        for look in range(year, year + 4):
            sessions = sessions_of_year(self.exchange, look)
            for session in sessions[bisect.bisect_right(sessions, instant, key=self._time) :]:
                if self.half_days == "include" or session.half == (self.half_days == "only"):
                    return session
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "market",
            "exchange": self.exchange,
            "at": self.at,
            "offset_seconds": self.offset.total_seconds(),
            "half_days": self.half_days,
        }
