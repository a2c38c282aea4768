from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable, Iterator
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.authoring import AuthoringError
from runner.authoring.timetables import Cron, Timetable

UTC = dt.UTC
HOUR = dt.timedelta(hours=1)
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca", "UTC"]

Fires = Callable[[dt.datetime], bool]
# Each cron with what it means, said without cron: wall clock → whether it fires.
FOLLOWING: dict[str, Fires] = {
    "*/30 * * 3,4,10,11 *": lambda w: w.minute in (0, 30) and w.month in (3, 4, 10, 11),
    "0 * * * *": lambda w: w.minute == 0,
    "0 */2 * * *": lambda w: w.minute == 0 and w.hour % 2 == 0,
    "0 */3 * * *": lambda w: w.minute == 0 and w.hour % 3 == 0,
    "*/15 */2 * * SUN": lambda w: w.minute % 15 == 0 and w.hour % 2 == 0 and w.weekday() == 6,
    "45 * 1 * *": lambda w: w.minute == 45 and w.day == 1,
    "*/20 2 * * *": lambda w: w.minute in (0, 20, 40) and w.hour == 2,
}
FIXED: dict[str, Fires] = {
    "30 2 * * *": lambda w: (w.hour, w.minute) == (2, 30),
    "30 18 * * *": lambda w: (w.hour, w.minute) == (18, 30),
    "0 2 * * *": lambda w: (w.hour, w.minute) == (2, 0),
    "15,45 1-2 * * *": lambda w: w.hour in (1, 2) and w.minute in (15, 45),
    "0 0 * * *": lambda w: (w.hour, w.minute) == (0, 0),
    "30 9 * * MON-FRI": lambda w: (w.hour, w.minute) == (9, 30) and w.weekday() < 5,
    "0 12 L * *": lambda w: (w.hour, w.minute) == (12, 0) and (w + dt.timedelta(days=1)).day == 1,
}
STEP = dt.timedelta(minutes=5)  # every cron above and every change of clocks below is at a multiple of it


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


def instants(timetable: Timetable, start: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    at = timetable.after(start - dt.timedelta(microseconds=1))
    while at and at < end:
        yield at
        at = timetable.after(at)


@functools.cache
def walls(zone: str, start: dt.datetime, end: dt.datetime) -> list[tuple[dt.datetime, dt.datetime]]:
    """(instant, what the clocks show) for every five minutes."""
    place = ZoneInfo(zone)
    times = [start + STEP * n for n in range((end - start) // STEP)]
    return [(t, t.astimezone(place).replace(tzinfo=None, fold=0)) for t in times]


def following(
    zone: str, fires: Callable[[dt.datetime], bool], start: dt.datetime, end: dt.datetime
) -> list[dt.datetime]:
    return [t for t, wall in walls(zone, start, end) if fires(wall)]


def fixed(zone: str, fires: Callable[[dt.datetime], bool], start: dt.datetime, end: dt.datetime) -> list[dt.datetime]:
    # A wall clock that never goes back: a time that comes again is not new, one that was jumped over is passed
    # at the jump.
    found = []
    shown = None
    for t, wall in walls(zone, start, end):
        new = wall if shown is None else shown + STEP
        passed = False
        while new <= wall:
            passed |= fires(new)
            shown, new = new, new + STEP
        if passed:
            found.append(t)
    return found


YEAR = (utc("2026-01-01"), utc("2027-01-01"))


@pytest.mark.parametrize("zone", ZONES)
def test_a_year_of_crons_agrees_with_arithmetic_on_zoneinfo(zone: str) -> None:
    for expressions, expected in ((FOLLOWING, following), (FIXED, fixed)):
        for expression, fires in expressions.items():
            found = list(instants(Cron(expression, zone), *YEAR))
            assert found == expected(zone, fires, *YEAR), (expression, zone)


def test_a_day_that_a_zone_left_out() -> None:
    # Given Samoa, which went from the 29th to the 31st of December 2011
    start, end = utc("2011-12-25"), utc("2012-01-05")
    for expression in FIXED:
        found = list(instants(Cron(expression, "Pacific/Apia"), start, end))
        assert found == fixed("Pacific/Apia", FIXED[expression], start, end), expression
    for expression in FOLLOWING:
        found = list(instants(Cron(expression, "Pacific/Apia"), start, end))
        assert found == following("Pacific/Apia", FOLLOWING[expression], start, end), expression


@pytest.mark.parametrize(
    ("zone", "skipped", "becomes"),
    [
        ("Europe/Berlin", "2026-03-29T02:30", "2026-03-29T01:00"),
        ("America/New_York", "2026-03-08T02:30", "2026-03-08T07:00"),
        ("America/St_Johns", "2026-03-08T02:30", "2026-03-08T05:30"),
        ("Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-03T15:30"),
    ],
)
def test_a_skipped_hour_fires_after_the_gap_if_it_is_named_and_not_at_all_if_not(
    zone: str, skipped: str, becomes: str
) -> None:
    wall = dt.datetime.fromisoformat(skipped)
    midday = wall.replace(hour=12, tzinfo=ZoneInfo(zone)) - 24 * HOUR
    assert Cron(f"{wall.minute} {wall.hour} * * *", zone).after(midday) == utc(becomes)
    # When the minute is any, the hour of the gap is left out
    hours = [t.astimezone(ZoneInfo(zone)) for t in instants(Cron("15 * * * *", zone), midday, midday + 24 * HOUR)]
    assert (wall.day, 2) not in {(t.day, t.hour) for t in hours}


@pytest.mark.parametrize(
    ("zone", "doubled", "first", "second"),
    [
        ("Europe/Berlin", "2026-10-25T02:30", "2026-10-25T00:30", "2026-10-25T01:30"),
        ("America/New_York", "2026-11-01T01:30", "2026-11-01T05:30", "2026-11-01T06:30"),
        ("America/St_Johns", "2026-11-01T01:30", "2026-11-01T04:00", "2026-11-01T05:00"),
        ("Australia/Lord_Howe", "2026-04-05T01:45", "2026-04-04T14:45", "2026-04-04T15:15"),
    ],
)
def test_a_doubled_hour_fires_once_if_it_is_named_and_twice_if_not(
    zone: str, doubled: str, first: str, second: str
) -> None:
    wall = dt.datetime.fromisoformat(doubled)
    named = Cron(f"{wall.minute} {wall.hour} * * *", zone)
    assert named.after(utc(first) - HOUR) == utc(first)
    # Asked between the two, and at the second, it does not go back
    for between in (utc(first), utc(first) + dt.timedelta(minutes=20), utc(second)):
        following_day = named.after(between)
        assert following_day and following_day.astimezone(ZoneInfo(zone)).date() == wall.date() + dt.timedelta(days=1)
    any_hour = Cron(f"{wall.minute} * * * *", zone)
    assert list(instants(any_hour, utc(first), utc(second) + STEP)) == [utc(first), utc(second)]


CRONS = st.sampled_from([*FIXED, *FOLLOWING])
INSTANTS = st.datetimes(dt.datetime(2005, 1, 1), dt.datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@settings(max_examples=150, deadline=None)
@given(CRONS, st.sampled_from([*ZONES, "Pacific/Apia", "Asia/Kathmandu", "America/Sao_Paulo"]), INSTANTS)
def test_instants_rise_and_intervals_leave_no_gap(expression: str, zone: str, instant: dt.datetime) -> None:
    cron = Cron(expression, zone)
    first = cron.after(instant)
    assert first and first > instant
    # Nothing lies between: asked from anywhere before, it is the same one
    assert cron.after(instant + (first - instant) / 2) == first
    second = cron.after(first)
    assert second and second > first
    assert cron.before(second) == first
    assert cron.interval(second) == (first, second)
    assert cron.on(first)[0] and not cron.on(first + dt.timedelta(microseconds=1))[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cron("61 * * * *"), "bad schedule '61 * * * *': Bad minute"),
        (lambda: Cron("* * *"), "Wrong number of fields"),
        (lambda: Cron("0 0 31 2 *"), "bad schedule '0 0 31 2 *'"),
        (lambda: Cron("@fortnightly"), "unknown schedule '@fortnightly'; one of @hourly"),
        (lambda: Cron("@daily", "Mars/Olympus"), "unknown time zone 'Mars/Olympus'"),
        (lambda: Cron(5), "must be a string, not 5"),  # type: ignore[arg-type]
    ],
)
def test_a_cron_that_cannot_be_is_refused_where_it_is_written(make: Callable[[], Cron], message: str) -> None:
    with pytest.raises(AuthoringError) as caught:
        make()
    assert message in str(caught.value)
    assert caught.value.place.file == __file__
