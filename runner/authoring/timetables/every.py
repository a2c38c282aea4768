"""`Every`: a fixed interval of real time, whatever clocks do."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import TICK, UTC, Timetable, check_aware, duration_text


@dataclass(frozen=True)
class Every(Timetable):
    """Every `length` before and after `anchor` (None: the DAG's start, without one 1970-01-01 UTC)."""

    length: dt.timedelta
    anchor: dt.datetime | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.length, dt.timedelta):
            raise AuthoringError(f"an interval must be a timedelta, not {self.length!r}")
        if self.length < dt.timedelta(seconds=1):
            raise AuthoringError(f"an interval must be a second or more, not {duration_text(self.length)}")
        if self.anchor is not None:
            check_aware("anchor", self.anchor)

    def __str__(self) -> str:
        return f"every {duration_text(self.length)}"

    def _anchor(self) -> dt.datetime:
        return (self.anchor or dt.datetime(1970, 1, 1, tzinfo=UTC)).astimezone(UTC)

    def after(self, instant: dt.datetime) -> dt.datetime:
        return self._anchor() + ((instant - self._anchor()) // self.length + 1) * self.length

    def before(self, instant: dt.datetime) -> dt.datetime:
        return self._anchor() + ((instant - TICK - self._anchor()) // self.length) * self.length

    def resolved(self, timezone: str, anchor: dt.datetime) -> Every:
        return self if self.anchor else replace(self, anchor=anchor)

    def to_json(self) -> dict[str, Any]:
        anchor = self.anchor and self.anchor.isoformat()
        return {"type": "every", "seconds": self.length.total_seconds(), "anchor": anchor}
