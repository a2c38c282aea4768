"""`Manual`: no schedule at all."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from runner.authoring.timetables.base import Timetable


@dataclass(frozen=True)
class Manual(Timetable):
    """Runs only when somebody starts it; the same as `schedule=None`, said aloud."""

    def __str__(self) -> str:
        return "by hand"

    def after(self, instant: dt.datetime) -> None:
        return None

    def before(self, instant: dt.datetime) -> None:
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "manual"}
