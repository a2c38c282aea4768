from __future__ import annotations

import datetime as dt

import pytest

from runner.authoring import DagSpec
from runner.scheduler import timetable


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)


def spec(schedule: str | None, timezone: str = "UTC", **options: object) -> DagSpec:
    return DagSpec(dag_id="d", schedule=schedule, timezone=timezone, **options)  # type: ignore[arg-type]


def test_cron_is_read_in_the_zone_of_the_dag() -> None:
    # 09:30 in New York is 14:30 UTC in winter and 13:30 in summer
    daily = spec("30 9 * * *", "America/New_York")
    assert timetable.after(daily, utc("2026-01-15T00:00")) == utc("2026-01-15T14:30")
    assert timetable.after(daily, utc("2026-07-15T00:00")) == utc("2026-07-15T13:30")


def test_an_hour_that_is_skipped_still_fires_and_one_that_comes_twice_fires_once() -> None:
    berlin = spec("30 2 * * *", "Europe/Berlin")
    # 2026-03-29 02:30 does not exist in Berlin, 2026-10-25 02:30 comes twice
    assert timetable.after(berlin, utc("2026-03-29T00:00")) == utc("2026-03-29T01:00")
    first = timetable.after(berlin, utc("2026-10-24T12:00"))
    assert first == utc("2026-10-25T00:30")
    assert timetable.after(berlin, first) == utc("2026-10-26T01:30")


def test_the_interval_is_the_time_that_ended() -> None:
    # Not the time to come: its data is not there yet when the run starts
    assert timetable.interval(spec("@hourly"), utc("2026-01-01T05:00")) == (
        utc("2026-01-01T04:00"),
        utc("2026-01-01T05:00"),
    )


def test_without_catchup_a_new_dag_begins_now_and_with_it_at_its_start() -> None:
    start = "2026-01-01T00:00:00+00:00"
    now = utc("2026-01-03T12:00")
    assert timetable.first(spec("@daily", start=start), now) == utc("2026-01-04T00:00")
    assert timetable.first(spec("@daily", start=start, catchup=True), now) == utc("2026-01-01T00:00")


def test_nothing_is_due_before_the_start_or_without_a_schedule() -> None:
    assert timetable.after(spec("@daily", start="2027-01-01T00:00:00+00:00"), utc("2026-01-01T00:00")) == utc(
        "2027-01-01T00:00"
    )
    assert timetable.after(spec(None), utc("2026-01-01T00:00")) is None


@pytest.mark.parametrize(
    ("schedule", "due", "now", "latest"),
    [
        ("@hourly", "2026-01-01T00:00", "2026-01-01T00:10", "2026-01-01T00:00"),
        ("@hourly", "2026-01-01T00:00", "2026-03-01T00:10", "2026-03-01T00:00"),
        ("* * * * *", "2025-01-01T00:00", "2026-03-01T00:10", "2026-03-01T00:10"),
        ("0 0 1 1 *", "2020-01-01T00:00", "2026-03-01T00:00", "2026-01-01T00:00"),
    ],
)
def test_a_dag_that_is_behind_takes_only_the_latest_instant(schedule: str, due: str, now: str, latest: str) -> None:
    assert timetable.latest(spec(schedule), utc(due), utc(now)) == utc(latest)
