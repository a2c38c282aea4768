"""`Cron`: times of a wall clock, in a zone whose clocks may jump."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import UTC, Timetable, check_zone

PRESETS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_STEP = dt.timedelta(hours=25)  # no zone changes its clocks twice within it, and none skips more (Samoa: a day)


@dataclass(frozen=True)
class Cron(Timetable):
    """A cron expression or a preset such as `@daily`, read in `timezone` (None: the DAG's).

    Where clocks jump it does as Debian's cron. An expression for fixed hours (neither the minute nor the hour
    begins with `*`) fires once for each time it names: one that is skipped at the first instant after the gap, one
    that comes twice the first time. Any other follows the clock: what is skipped does not fire, what comes twice
    fires twice. cronsim knows the fields; it is asked about zoneless times only, because its own steps across a
    change miss times where clocks move by half an hour (Lord Howe).
    """

    expression: str
    timezone: str | None = None

    def __post_init__(self) -> None:
        if self.timezone is not None:
            check_zone(f"Cron({self.expression!r})", self.timezone)
        if not isinstance(self.expression, str):
            raise AuthoringError(f"a cron expression must be a string, not {self.expression!r}")
        if self.expression.startswith("@") and self.expression not in PRESETS:
            raise AuthoringError(f"unknown schedule {self.expression!r}; one of {', '.join(PRESETS)}")
        try:
            next(CronSim(self._fields, dt.datetime(2000, 1, 1)))  # noqa: DTZ001 - a wall clock has no zone
        except CronSimError as e:
            raise AuthoringError(f"bad schedule {self.expression!r}: {e}") from None
        except StopIteration:
            raise AuthoringError(f"bad schedule {self.expression!r}: it never comes") from None

    def __str__(self) -> str:
        return self.expression if self.timezone is None else f"{self.expression} {self.timezone}"

    @property
    def _fields(self) -> str:
        return PRESETS.get(self.expression, self.expression)

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        zone = ZoneInfo(self.timezone or "UTC")
        minute, hour = self._fields.split()[-5:-3]
        fixed = not minute.startswith("*") and not hour.startswith("*")
        try:
            return self._fixed(instant, zone) if fixed else self._flowing(instant, zone)
        except StopIteration:
            return None

    def _fixed(self, instant: dt.datetime, zone: ZoneInfo) -> dt.datetime:
        for wall in CronSim(self._fields, instant.astimezone(zone).replace(tzinfo=None, fold=0)):
            found = wall.replace(tzinfo=zone).astimezone(UTC)
            if found.astimezone(zone).replace(tzinfo=None) != wall:  # in a gap
                found = _change(zone, found - _STEP, found)
            if found > instant:  # not so in an hour that comes again
                return found
        raise StopIteration

    def _flowing(self, instant: dt.datetime, zone: ZoneInfo) -> dt.datetime:
        # One stretch of constant offset after another: within one, the wall clock is plain arithmetic.
        start = instant.astimezone(UTC)
        while True:
            offset = _offset(zone, start)
            found = next(CronSim(self._fields, (start + offset).replace(tzinfo=None))).replace(tzinfo=UTC) - offset
            probe = start
            while probe < found and _offset(zone, probe) == offset:
                probe = min(probe + _STEP, found)
            if _offset(zone, probe) == offset:
                return found
            # The change itself may be an instant: look from just before it, with the offset from it on.
            change = _change(zone, max(start, probe - _STEP), probe)
            if self._matches(change.astimezone(zone)) and change > instant:
                return change
            start = change

    def _matches(self, at: dt.datetime) -> bool:
        wall = at.replace(tzinfo=None, fold=0)
        return next(CronSim(self._fields, wall - dt.timedelta(seconds=1))) == wall

    def resolved(self, timezone: str, anchor: dt.datetime) -> Cron:
        return self if self.timezone else replace(self, timezone=timezone)

    def to_json(self) -> dict[str, Any]:
        return {"type": "cron", "expression": self.expression, "timezone": self.timezone}


def _offset(zone: ZoneInfo, at: dt.datetime) -> dt.timedelta:
    return at.astimezone(zone).utcoffset() or dt.timedelta(0)


def _change(zone: ZoneInfo, low: dt.datetime, high: dt.datetime) -> dt.datetime:
    """The first second at which the offset is no longer that of `low`; it is another one at `high`."""
    offset = _offset(zone, low)
    span = int((high - low).total_seconds()) + 1
    low = low.replace(microsecond=0)
    first, last = 0, span
    while first < last:
        middle = (first + last) // 2
        if _offset(zone, low + dt.timedelta(seconds=middle)) == offset:
            first = middle + 1
        else:
            last = middle
    return low + dt.timedelta(seconds=first)
