"""Times: nothing to ask anybody, only to be looked at when they have come."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Sequence
from typing import Any

from runner.scheduler.sense.answers import Answer, Answers, Found, NotYet, Waiting


class Time:
    """By the database's clock."""

    def group(self, condition: dict[str, Any]) -> str:
        moment(condition)
        return "time"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        return {w.id: _answer(moment(w.condition), now) for w in waiting}

    async def close(self) -> None: ...


def _answer(when: dt.datetime, now: float) -> Answer:
    return Found(when.isoformat()) if when.timestamp() <= now else NotYet(again=when.timestamp())


def moment(condition: dict[str, Any]) -> dt.datetime:
    """When the condition holds: {"after", "seconds"}, or the first {"at", "timezone"} from `after` on."""
    after = dt.datetime.fromisoformat(condition["after"])
    if after.tzinfo is None:
        raise ValueError(f"time {condition['after']!r} has no zone")
    if "at" not in condition:
        return after + dt.timedelta(seconds=condition["seconds"])
    zone = zoneinfo.ZoneInfo(condition["timezone"])
    at = dt.time.fromisoformat(condition["at"])
    day = after.astimezone(zone).date()
    while True:
        found = dt.datetime.combine(day, at, zone).astimezone(dt.UTC)
        back = found.astimezone(zone).replace(tzinfo=None)
        if back != dt.datetime.combine(day, at):  # skipped by a change of the clock: take the change itself
            found = _change(dt.datetime.combine(day, at, zone))
        if found >= after:
            return found
        day += dt.timedelta(days=1)


def _change(skipped: dt.datetime) -> dt.datetime:
    """The instant at which the clock jumps over a wall time (PEP 495: fold 0 has the offset before, 1 that after)."""
    before = skipped.replace(fold=0).utcoffset() or dt.timedelta(0)
    after = skipped.replace(fold=1).utcoffset() or dt.timedelta(0)
    low = skipped.replace(tzinfo=None) - max(before, after)
    high = skipped.replace(tzinfo=None) - min(before, after)
    zone = skipped.tzinfo
    while high - low > dt.timedelta(seconds=1):
        middle = low + (high - low) / 2
        if middle.replace(tzinfo=dt.UTC).astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(tzinfo=dt.UTC, microsecond=0)
