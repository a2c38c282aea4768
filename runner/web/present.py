"""How values read on a page: times, durations, sizes of bars, attempts told from events. Pure."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined

from runner.state.queries import EventRow, NodeRow

WORDS = {
    "up_for_retry": "up for retry",
    "upstream_failed": "upstream failed",
    "wait_ready": "wait until ready",
}


def install(env: Environment) -> None:
    """Give the templates these filters. An unknown name in a template is an error, not an empty place."""
    env.undefined = StrictUndefined
    env.trim_blocks = env.lstrip_blocks = True
    env.filters |= {
        "duration": duration,
        "iso": iso,
        "utc": utc,
        "words": words,
        "short": short,
        "path": path,
        "pools": pools,
        "shares": shares,
        "pairs": as_pairs,
    }


def duration(seconds: float | None) -> str:
    """A length of time in two units at most: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    if seconds is None:
        return "-"
    seconds = max(seconds, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for big, small, unit, part in ((60, 1, "min", "s"), (3600, 60, "h", "min"), (86400, 3600, "d", "h")):
        if whole < big * (60 if unit == "min" else 24) or unit == "d":
            n, rest = whole // big, whole % big // small
            return f"{n} {unit} {rest} {part}" if rest else f"{n} {unit}"
    raise AssertionError


def iso(at: dt.datetime) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc(at: dt.datetime) -> str:
    """For people, in UTC."""
    return at.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def words(name: str) -> str:
    """A state or an action as words."""
    return WORDS.get(name, name.replace("_", " "))


def short(text: str, length: int = 26) -> str:
    """The text, with its middle left out where it is longer: ends tell names apart."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def path(part: object) -> str:
    """A value as one part of a URL's path."""
    return quote(str(part), safe="")


def pools(nodes: Sequence[NodeRow]) -> list[tuple[str, str, list[NodeRow]]]:
    """(role, pool, nodes), in the order of the nodes."""
    return [(role, pool, list(group)) for (role, pool), group in groupby(nodes, key=lambda n: (n.role, n.pool))]


@dataclass(frozen=True)
class Gantt:
    """The time a run spans, to place bars in it."""

    start: dt.datetime
    end: dt.datetime

    def bar(self, start: dt.datetime | None, end: dt.datetime | None) -> tuple[str, str] | None:
        """(x, width) in per cent of the span, at least wide enough to be seen; None for what has not started."""
        span = (self.end - self.start).total_seconds()
        if start is None or span <= 0:
            return None
        x = (start - self.start).total_seconds() / span
        width = ((end or self.end) - start).total_seconds() / span
        width = min(max(width, 0.008), 1.0)
        x = min(max(x, 0.0), 1.0 - width)
        return f"{100 * x:.2f}%", f"{100 * width:.2f}%"


@dataclass
class Attempt:
    """One attempt, as its events tell it. `outcome` is None while it goes on."""

    number: int
    queued_at: dt.datetime | None = None
    started_at: dt.datetime | None = None
    ended_at: dt.datetime | None = None
    node_id: str | None = None
    outcome: str | None = None
    detail: str | None = None

    @property
    def seconds(self) -> float | None:
        """How long it ran; None before it started or while it runs."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()


def attempts(events: Iterable[EventRow]) -> list[Attempt]:
    """The attempts in these events of one task instance, the last one first."""
    found: dict[int, Attempt] = {}
    for e in events:
        if e.attempt is None:
            continue
        a = found.setdefault(e.attempt, Attempt(e.attempt))
        a.node_id = e.node_id or a.node_id
        if e.state == "queued":
            a.queued_at = e.at
        elif e.state == "running":
            a.started_at = e.at
        else:
            a.ended_at, a.detail, a.outcome = e.at, e.detail, e.state
            if e.state == "ready":
                first = (e.detail or "").split(":")[0]
                a.outcome = {"will be retried": "failed", "interrupted": "interrupted"}.get(first, "refused")
    return sorted(found.values(), key=lambda a: -a.number)


def shares(counts: dict[str, int] | Counter[str]) -> list[tuple[str, int, str, str]]:
    """(state, count, x, width) of a bar that shows all states side by side, in per cent."""
    order = ("success", "running", "queued", "ready", "waiting", "skipped", "upstream_failed", "failed")
    total = sum(counts.values())
    out: list[tuple[str, int, str, str]] = []
    x = 0.0
    for state in order:
        n = counts.get(state, 0)
        if n:
            out.append((state, n, f"{100 * x / total:.3f}%", f"{100 * n / total:.3f}%"))
            x += n
    return out


def as_pairs(values: dict[str, Any]) -> str:
    """Arguments in one line: count=1 node=i-0abc."""
    return " ".join(f"{k}={v}" for k, v in values.items() if v is not None and v != "")
