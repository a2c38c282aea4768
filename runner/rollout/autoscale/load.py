"""Loads to replay: what tasks became ready when, and how long each ran. As CSV, or made up by a rule."""

from __future__ import annotations

import csv
import datetime as dt
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

from runner.settings import UsageError

COLUMNS = ("queue", "ready_at", "seconds")
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt of a task: ready at `ready_at` (seconds since the load's first), at work for `seconds`."""

    ready_at: float
    seconds: float
    queue: str = "default"


def read(file: TextIO, name: str) -> list[Task]:
    """The tasks of a CSV file with the columns queue, ready_at (ISO 8601 or seconds) and seconds, in their order.

    Raises UsageError with the line for what cannot be read, and for a file without a task.
    """
    rows = csv.DictReader(file)
    if missing := [c for c in COLUMNS if c not in (rows.fieldnames or ())]:
        raise UsageError(
            f"{name} has no column {', '.join(missing)}",
            f"its first line is {','.join(COLUMNS)}; `deployctl fleet load` writes such a file",
        )
    found = []
    for row in rows:
        try:
            at, seconds = _instant(row["ready_at"]), float(row["seconds"])
        except (ValueError, TypeError):
            at = seconds = math.nan
        if not math.isfinite(at) or not 0 <= seconds < math.inf:
            raise UsageError(
                f"{name}, line {rows.line_num}: no task is ready at {row['ready_at']!r} for {row['seconds']!r} seconds",
                "ready_at is a time such as 2026-01-31T08:00:00Z or a number of seconds, seconds is 0 or more",
            )
        found.append(Task(at, seconds, row["queue"]))
    if not found:
        raise UsageError(f"{name} holds no task", "was anything executed in that time?")
    first = min(t.ready_at for t in found)
    moved = [Task(t.ready_at - first, t.seconds, t.queue) for t in found]
    return sorted(moved, key=lambda t: (t.ready_at, t.queue))


def write(file: TextIO, tasks: Iterable[tuple[str, dt.datetime, float]]) -> int:
    """Write (queue, ready at, seconds) as CSV; returns how many."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(COLUMNS)
    n = 0
    for queue, ready_at, seconds in tasks:
        n += 1
        at = ready_at.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        rows.writerow((queue, at, f"{seconds:.3f}"))
    return n


def _instant(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        at = dt.datetime.fromisoformat(value)
        return (at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp()


# --- made up ------------------------------------------------------------------------------------------------------


def burst(rng: random.Random) -> Iterator[tuple[float, float]]:
    """Ten minutes of nothing much, then 500 tasks of ten seconds at once, and an hour in which little happens."""
    yield from _poisson(rng, 0.0, 4200.0, lambda _: 1 / 60, 5.0)
    yield from ((600.0, 10.0) for _ in range(500))


def steady(rng: random.Random) -> Iterator[tuple[float, float]]:
    """Four hours of a task every two seconds at random, of 30 s in the mean: 15 are at work at any time."""
    yield from _poisson(rng, 0.0, 4 * _HOUR, lambda _: 0.5, 30.0)


def daily(rng: random.Random) -> Iterator[tuple[float, float]]:
    """A day: quiet at night, a peak at two in the afternoon, and on each full hour 40 tasks of a minute."""

    def rate(at: float) -> float:
        return 0.02 + 0.6 * max(0.0, math.sin(math.pi * (at / _HOUR - 8) / 12)) ** 2 * (8 <= at / _HOUR <= 20)

    yield from _poisson(rng, 0.0, 24 * _HOUR, rate, 40.0)
    yield from ((hour * _HOUR, rng.uniform(30, 90)) for hour in range(24) for _ in range(40))


def nightly(rng: random.Random) -> Iterator[tuple[float, float]]:
    """A day whose work is done at night: at two o'clock 60 tasks of 5 to 60 minutes, a small one each five minutes."""
    yield from ((minute * 60.0, 2.0) for minute in range(0, 24 * 60, 5))
    yield from ((2 * _HOUR, rng.uniform(300, 3600)) for _ in range(60))


SYNTHETIC: dict[str, Callable[[random.Random], Iterator[tuple[float, float]]]] = {
    f.__name__: f for f in (burst, steady, daily, nightly)
}


def synthetic(name: str, seed: int = 0) -> list[Task]:
    """A load made by one of the rules; the same seed gives the same load."""
    return sorted((Task(at, s) for at, s in SYNTHETIC[name](random.Random(seed))), key=lambda t: t.ready_at)


def _poisson(
    rng: random.Random, start: float, end: float, rate: Callable[[float], float], mean: float
) -> Iterator[tuple[float, float]]:
    """Arrivals at so many a second, of exponentially distributed lengths (by thinning)."""
    most = max(rate(start + i * (end - start) / 1000) for i in range(1001))
    at = start
    while (at := at + rng.expovariate(most)) < end:
        if rng.random() * most <= rate(at):
            yield at, rng.expovariate(1 / mean)
