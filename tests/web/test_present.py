from __future__ import annotations

import datetime as dt

import pytest

from runner.state.queries import EventRow
from runner.web import present

T = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"),
        (-1, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7800, "2 h 10 min"),
        (86400, "1 d"),
        (30 * 86400 + 7200, "30 d 2 h"),
    ],
)
def test_durations_read_in_two_units_at_most(seconds: float | None, shown: str) -> None:
    assert present.duration(seconds) == shown


def test_long_names_keep_both_ends() -> None:
    assert present.short("load.san_francisco.017", 12) == "load.…sco.017"[:5] + "…" + "co.017"
    assert len(present.short("x" * 100, 12)) == 12
    assert present.short("short", 12) == "short"


def test_bars_stay_inside_and_can_be_seen() -> None:
    gantt = present.Gantt(T, T + dt.timedelta(seconds=100))

    assert gantt.bar(T + dt.timedelta(seconds=10), T + dt.timedelta(seconds=30)) == ("10.00%", "20.00%")
    assert gantt.bar(T + dt.timedelta(seconds=50), None) == ("50.00%", "50.00%")
    assert gantt.bar(T + dt.timedelta(seconds=100), T + dt.timedelta(seconds=100)) == ("99.20%", "0.80%")
    assert gantt.bar(T - dt.timedelta(seconds=9), T + dt.timedelta(seconds=1)) == ("0.00%", "10.00%")
    assert gantt.bar(None, None) is None


def event(n: int, state: str, attempt: int | None, detail: str | None = None) -> EventRow:
    return EventRow(n, T + dt.timedelta(seconds=n), "task", "1", state, 1, attempt, "n1", detail)


def test_attempts_are_told_from_events() -> None:
    events = [
        event(1, "queued", 1),
        event(2, "ready", 1, "refused by a node that is not ready"),
        event(3, "queued", 2),
        event(4, "running", 2),
        event(9, "ready", 2, "will be retried: broken"),
        event(10, "queued", 3),
        event(11, "running", 3),
        event(12, "ready", 3, "interrupted: lease expired"),
        event(13, "queued", 4),
        event(14, "running", 4),
    ]

    told = present.attempts([*events, event(15, "upstream_failed", None)])

    assert [(a.number, a.outcome, a.seconds) for a in told] == [
        (4, None, None),
        (3, "interrupted", 1.0),
        (2, "failed", 5.0),
        (1, "refused", None),
    ]


def test_shares_fill_the_whole_bar() -> None:
    bars = present.shares({"success": 1, "failed": 2, "waiting": 1})

    assert [(s, n) for s, n, _, _ in bars] == [("success", 1), ("waiting", 1), ("failed", 2)]
    assert bars[-1][2:] == ("50.000%", "50.000%")
    assert present.shares({}) == []
