"""`Union`, `Intersection` and `Except` of timetables and calendars, also written `|`, `&` and `-`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.timetables.base import FAR, TICK, Timetable

_MOST_STEPS = 10_000  # two that have not met after as many tries never will


@dataclass(frozen=True, init=False)
class _Combined(Timetable):
    parts: tuple[Timetable, ...]

    type = ""
    word = ""

    def __init__(self, *parts: Timetable) -> None:
        name = type(self).__name__
        if len(parts) < 2:
            raise AuthoringError(f"{name} takes two or more timetables")
        for part in parts:
            if not isinstance(part, Timetable):
                raise AuthoringError(f"{name} takes timetables and calendars, not {part!r}")
        object.__setattr__(self, "parts", parts)

    def __str__(self) -> str:
        return self.word.join(f"({p})" if isinstance(p, _Combined) else str(p) for p in self.parts)

    def session(self, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
        for part in self.parts:
            found = part.session(logical_date)
            if found:
                return found
        return None

    def resolved(self, timezone: str, anchor: dt.datetime) -> Timetable:
        return type(self)(*(p.resolved(timezone, anchor) for p in self.parts))

    def to_json(self) -> dict[str, Any]:
        return {"type": self.type, "of": [p.to_json() for p in self.parts]}


class Union(_Combined):
    """The instants of any of them; of calendars, the days of any."""

    type = "union"
    word = " | "

    def __init__(self, *parts: Timetable) -> None:
        super().__init__(*parts)
        if len({p.days for p in parts}) > 1:
            raise AuthoringError("Union: a calendar's days have no time of day; join timetables, or calendars")

    @property
    def days(self) -> bool:  # type: ignore[override]
        return self.parts[0].days

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        return min((t for p in self.parts if (t := p.after(instant))), default=None)

    def before(self, instant: dt.datetime) -> dt.datetime | None:
        return max((t for p in self.parts if (t := p.before(instant))), default=None)

    def on(self, instant: dt.datetime) -> tuple[bool, dt.datetime]:
        found = [p.on(instant) for p in self.parts]
        inside = [until for is_on, until in found if is_on]
        return (True, max(inside)) if inside else (False, min(until for _, until in found))


class Intersection(_Combined):
    """The instants that all of them have: `Cron("30 9 * * *") & Sessions("XNYS")` is 09:30 on trading days."""

    type = "intersection"
    word = " & "

    @property
    def days(self) -> bool:  # type: ignore[override]
        return all(p.days for p in self.parts)

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        lead = next(p for p in self.parts if not p.days)
        others = [p for p in self.parts if p is not lead]
        for _ in range(_MOST_STEPS):
            found = lead.after(instant)
            if found is None:
                return None
            later = max((until for p in others for is_on, until in [p.on(found)] if not is_on), default=None)
            if later is None:
                return found
            if later >= FAR:
                return None
            instant = later - TICK
        return None

    def on(self, instant: dt.datetime) -> tuple[bool, dt.datetime]:
        found = [p.on(instant) for p in self.parts]
        outside = [until for is_on, until in found if not is_on]
        return (False, max(outside)) if outside else (True, min(until for _, until in found))


class Except(_Combined):
    """The instants of the first that none of the others has: `Cron("0 6 * * *") - Dates(["2026-12-24"])`."""

    type = "except"
    word = " - "

    def __init__(self, *parts: Timetable) -> None:
        super().__init__(*parts)
        if parts[0].days and not all(p.days for p in parts):
            raise AuthoringError("Except: from a calendar only days can be taken away, not instants")

    @property
    def days(self) -> bool:  # type: ignore[override]
        return self.parts[0].days

    def after(self, instant: dt.datetime) -> dt.datetime | None:
        for _ in range(_MOST_STEPS):
            found = self.parts[0].after(instant)
            if found is None:
                return None
            later = max((until for p in self.parts[1:] for is_on, until in [p.on(found)] if is_on), default=None)
            if later is None:
                return found
            instant = later - TICK
        return None

    def session(self, logical_date: dt.datetime) -> tuple[dt.datetime, dt.datetime] | None:
        return self.parts[0].session(logical_date)

    def on(self, instant: dt.datetime) -> tuple[bool, dt.datetime]:
        inside, until = self.parts[0].on(instant)
        if not inside:
            return False, until
        others = [p.on(instant) for p in self.parts[1:]]
        excluding = [u for is_on, u in others if is_on]
        return (False, max(excluding)) if excluding else (True, min([until, *(u for _, u in others)]))
