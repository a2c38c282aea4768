"""Waiting for a time."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.sensors.base import DeferrableSensor


class TimeSensor(DeferrableSensor):
    """Waits until a time of day: the first such moment at or after the end of the run's data interval.

    `timezone` is an IANA name. A time that a change of the clock skips is the moment the clock changes to; one that
    comes twice is the first.
    """

    def __init__(self, task_id: str, *, at: dt.time, timezone: str = "UTC", **options: Any) -> None:
        super().__init__(task_id, **options)
        if not isinstance(at, dt.time) or at.tzinfo is not None:
            raise AuthoringError(f"task {task_id!r}: at must be a datetime.time without a zone, not {at!r}")
        try:
            zoneinfo.ZoneInfo(timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            raise AuthoringError(f"task {task_id!r}: unknown time zone {timezone!r}; e.g. Europe/Berlin") from None
        self.at = at
        self.timezone = timezone

    def condition(self) -> dict[str, Any]:
        """{"kind": "time", "at", "timezone", "after"}"""
        after = "{{ interval_end | ts }}"
        return {"kind": "time", "at": self.at.isoformat(), "timezone": self.timezone, "after": after}


class DeltaSensor(DeferrableSensor):
    """Waits until `delta` after the end of the run's data interval (its logical date, for a run by hand)."""

    def __init__(self, task_id: str, *, delta: dt.timedelta, **options: Any) -> None:
        super().__init__(task_id, **options)
        if not isinstance(delta, dt.timedelta):
            raise AuthoringError(f"task {task_id!r}: delta must be a timedelta, not {delta!r}")
        self.delta = delta

    def condition(self) -> dict[str, Any]:
        """{"kind": "time", "after", "seconds"}"""
        return {"kind": "time", "after": "{{ interval_end | ts }}", "seconds": self.delta.total_seconds()}
