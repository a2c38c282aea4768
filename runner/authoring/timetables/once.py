"""`Once`: one run at one instant."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from runner.authoring.timetables.base import UTC, Timetable, check_aware


@dataclass(frozen=True)
class Once(Timetable):
    """A single run at `at`. One that is past when the DAG is deployed does not run, unless the DAG catches up."""

    at: dt.datetime

    def __post_init__(self) -> None:
        check_aware("Once", self.at)

    def __str__(self) -> str:
        return f"once at {self.at.isoformat()}"

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        return self.at.astimezone(UTC) if self.at > instant else None

    def before(self, instant: dt.datetime) -> dt.datetime | None:
        return self.at.astimezone(UTC) if self.at < instant else None

    def to_json(self) -> dict[str, Any]:
        return {"type": "once", "at": self.at.isoformat()}
