"""`Sessions`: the days on which an exchange is open, and where every market timetable learns them."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import UTC, Timetable, TimetableError, midnight


class Session(NamedTuple):
    """One trading day. `half` if it closes early; open and close in UTC."""

    day: dt.date
    open: dt.datetime
    close: dt.datetime
    half: bool


@dataclass(frozen=True)
class Sessions(Timetable):
    """The calendar of an exchange's trading days (its ISO code, e.g. XNYS), each from midnight to midnight there."""

    exchange: str

    days = True

    def __post_init__(self) -> None:
        check_exchange(self.exchange)

    def __str__(self) -> str:
        return f"{self.exchange} sessions"

    def on(self, instant: dt.datetime) -> tuple[bool, dt.datetime]:
        zone = exchange_zone(self.exchange)
        day = instant.astimezone(zone).date()
        known = days_of_year(self.exchange, day.year) if day.year >= first_year(self.exchange) else frozenset()
        return day in known, midnight(day + dt.timedelta(days=1), zone)

    def to_json(self) -> dict[str, Any]:
        return {"type": "sessions", "exchange": self.exchange}


def check_exchange(exchange: object) -> None:
    """Raise AuthoringError unless it could be the name of an exchange. Whether there is one is asked at the push."""
    if not isinstance(exchange, str) or not exchange:
        raise AuthoringError(f"an exchange must be an ISO code such as XNYS, not {exchange!r}")


@functools.lru_cache(maxsize=256)
def sessions_of_year(exchange: str, year: int) -> tuple[Session, ...]:
    """The sessions of a calendar year, oldest first. Raises TimetableError for a year beyond what is known."""
    calendar = _calendar(exchange)
    first, last = calendar.bound_min(), calendar.bound_max()
    start, end = dt.date(year, 1, 1), dt.date(year, 12, 31)
    if last is not None and last.date() < start:
        raise TimetableError(
            f"exchange {exchange} is known until {last.date()} only; a newer exchange_calendars may know more"
        )
    if first is not None:
        start = max(start, first.date())
    if last is not None:
        end = min(end, last.date())
    if start > end:
        return ()
    try:
        table = _library().get_calendar(exchange, start=start.isoformat(), end=end.isoformat())
    except ValueError as e:
        raise TimetableError(f"exchange {exchange}: no sessions for {year}: {e}") from None
    half = set(table.early_closes)
    return tuple(
        Session(day.date(), opens.to_pydatetime().astimezone(UTC), closes.to_pydatetime().astimezone(UTC), day in half)
        for day, opens, closes in zip(table.sessions, table.opens, table.closes, strict=True)
    )


@functools.lru_cache(maxsize=256)
def days_of_year(exchange: str, year: int) -> frozenset[dt.date]:
    """The days of `sessions_of_year`."""
    return frozenset(s.day for s in sessions_of_year(exchange, year))


def first_year(exchange: str) -> int:
    """The first year with sessions. Raises TimetableError for an exchange that does not exist."""
    first = _calendar(exchange).bound_min()
    return dt.MINYEAR if first is None else first.year


def exchange_zone(exchange: str) -> ZoneInfo:
    """The zone of an exchange. Raises TimetableError for one that does not exist."""
    return ZoneInfo(str(_calendar(exchange).tz))


@functools.cache
def _calendar(exchange: str) -> Any:
    library = _library()
    try:
        return library.get_calendar(exchange)
    except library.errors.InvalidCalendarName:
        raise TimetableError(f"unknown exchange {exchange!r}; e.g. XNYS, XLON, XETR, XTKS") from None


def _library() -> Any:
    # Here and not above: it brings pandas with it, which only a process that is asked about a market needs.
    try:
        import exchange_calendars
    except ImportError:
        raise TimetableError("market calendars need the extra: pip install 'sluice[calendars]'") from None
    return exchange_calendars
