"""`Dates`: a calendar of days written down one by one."""

from __future__ import annotations

import bisect
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import FAR, Timetable, check_zone, midnight


@dataclass(frozen=True)
class Dates(Timetable):
    """Days such as "2026-12-24", in `timezone` (None: the DAG's): `Cron("0 6 * * *") - Dates(["2026-12-24"])`."""

    dates: Sequence[dt.date | str]
    timezone: str | None = None

    days = True

    def __post_init__(self) -> None:
        if isinstance(self.dates, str | dt.date):
            raise AuthoringError(f"Dates takes a list of days, not {self.dates!r}")
        object.__setattr__(self, "dates", tuple(sorted({_date(d) for d in self.dates})))
        if not self.dates:
            raise AuthoringError("Dates has no day")
        if self.timezone is not None:
            check_zone("Dates", self.timezone)

    def __str__(self) -> str:
        more = f" and {len(self.dates) - 1} more days" if len(self.dates) > 1 else ""
        return f"{self.dates[0]}{more}"

    def on(self, instant: dt.datetime) -> tuple[bool, dt.datetime]:
        zone = ZoneInfo(self.timezone or "UTC")
        day = instant.astimezone(zone).date()
        dates: Sequence[Any] = self.dates
        at = bisect.bisect_left(dates, day)
        if at < len(dates) and dates[at] == day:
            return True, midnight(day + dt.timedelta(days=1), zone)
        return False, midnight(dates[at], zone) if at < len(dates) else FAR

    def resolved(self, timezone: str, anchor: dt.datetime) -> Dates:
        return self if self.timezone else replace(self, timezone=timezone)

    def to_json(self) -> dict[str, Any]:
        return {"type": "dates", "dates": [str(d) for d in self.dates], "timezone": self.timezone}


def _date(value: object) -> dt.date:
    if isinstance(value, dt.datetime):
        raise AuthoringError(f"Dates takes days without a time, not {value!r}")
    if isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise AuthoringError(f"{value!r} is not a day; write it as 2026-12-24") from None
