from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.authoring import DAG, AuthoringError, Context, DagSpec, latest_only, task
from runner.authoring.timetables import (
    Cron,
    Dates,
    Every,
    Except,
    Intersection,
    Manual,
    Market,
    Once,
    Sessions,
    Timetable,
    TimetableError,
    Union,
    from_plain,
)

UTC = dt.UTC
NOON = dt.datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = dt.timedelta(hours=1)
DAY = 24 * HOUR


def instants(timetable: Timetable, start: dt.datetime, end: dt.datetime) -> Iterator[dt.datetime]:
    at = timetable.after(start - dt.timedelta(microseconds=1))
    while at and at < end:
        yield at
        at = timetable.after(at)


LEAVES = st.one_of(
    st.builds(Every, st.sampled_from([2 * HOUR, 3 * HOUR, 7 * HOUR, DAY]), st.just(NOON)),
    st.sampled_from(
        [
            Cron("0 */4 * * *"),
            Cron("0 0 * * MON-FRI"),
            Cron("0 6 * * *", "Europe/Berlin"),
            Once(NOON + 3 * HOUR),
            Manual(),
        ]
    ),
)
CALENDARS = st.builds(
    Dates,
    st.lists(st.dates(dt.date(2026, 6, 1), dt.date(2026, 6, 20)), min_size=1, max_size=9),
    st.sampled_from(["UTC", "Asia/Tokyo", "America/New_York"]),
)


@pytest.fixture(scope="module")
def few_steps() -> Iterator[None]:
    """Two timetables that never meet are given up sooner: the tests look at two weeks only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runner.authoring.timetables.combine._MOST_STEPS", 300)
        yield


@settings(max_examples=50, deadline=None)
@given(LEAVES, LEAVES, CALENDARS, CALENDARS)
def test_combinations_are_those_of_sets(
    few_steps: None, a: Timetable, b: Timetable, c: Timetable, d: Timetable
) -> None:
    start, end = NOON - DAY, NOON + 15 * DAY

    def of(timetable: Timetable) -> set[dt.datetime]:
        found = list(instants(timetable, start, end))
        assert found == sorted(set(found))
        for earlier, later in itertools.pairwise(found):
            assert timetable.before(later) == earlier
        return set(found)

    def within(times: set[dt.datetime], calendar: Timetable) -> set[dt.datetime]:
        return {t for t in times if calendar.on(t)[0]}

    left, right = of(a), of(b)
    assert of(a | b) == left | right
    assert of(a & b) == left & right
    assert of(a - b) == left - right
    assert of(a & c) == of(c & a) == within(left, c)
    assert of(a - c) == left - within(left, c)
    assert of(a & (c | d)) == within(left, c) | within(left, d)
    assert of(a & (c & d)) == of(a & c & d) == within(within(left, c), d)
    assert of(a & (c - d)) == within(left, c) - within(left, d)
    assert of((a | b) - (c | d)) == (left | right) - within(left | right, c | d)


@settings(max_examples=60, deadline=None)
@given(CALENDARS, CALENDARS, st.integers(0, 24 * 25))
def test_a_calendar_says_how_long_its_answer_holds(c: Timetable, d: Timetable, hours: int) -> None:
    at = NOON - 2 * DAY + hours * HOUR
    for calendar in (c, c | d, c & d, c - d):
        inside, until = calendar.on(at)
        assert until > at
        for later in range(1, 60):
            if at + later * HOUR < until:
                assert calendar.on(at + later * HOUR)[0] is inside


def test_an_interval_is_real_time_from_its_anchor_both_ways() -> None:
    every = Every(7 * HOUR, NOON)
    assert every.after(NOON) == NOON + 7 * HOUR
    assert every.after(NOON - HOUR) == NOON
    assert every.before(NOON) == NOON - 7 * HOUR
    assert every.interval(NOON) == (NOON - 7 * HOUR, NOON)
    # A change of clocks does not move it
    berlin = list(instants(Every(DAY, NOON), dt.datetime(2026, 3, 27, tzinfo=UTC), dt.datetime(2026, 4, 2, tzinfo=UTC)))
    assert {t.hour for t in berlin} == {12}


def test_once_and_manual() -> None:
    assert Once(NOON).after(NOON - HOUR) == NOON
    assert Once(NOON).after(NOON) is None
    assert Once(NOON).interval(NOON) == (NOON, NOON)
    assert Manual().after(NOON) is None
    assert Manual().interval(NOON) == (NOON, NOON)


def test_what_never_meets_ends() -> None:
    assert (Cron("0 9 * * *") & Once(NOON)).after(NOON - DAY) is None
    assert (Cron("0 9 * * *") & Dates(["2020-01-01"])).after(NOON) is None


def test_the_interval_of_a_union_is_since_the_last_of_any() -> None:
    both = Cron("0 0 * * *") | Cron("0 6 * * *")
    assert both.interval(NOON.replace(hour=6)) == (NOON.replace(hour=0), NOON.replace(hour=6))


EVERYTHING = [
    Manual(),
    Cron("@daily"),
    Cron("*/5 * * * *", "Asia/Tokyo"),
    Every(90 * HOUR),
    Every(HOUR, NOON),
    Once(NOON),
    Market("XNYS", "open", dt.timedelta(minutes=-5), "skip"),
    Cron("30 9 * * *") & Sessions("XNYS"),
    (Cron("0 6 * * *") | Every(HOUR)) - Dates(["2026-12-24", dt.date(2026, 12, 31)]),
    Cron("0 6 * * *") & (Sessions("XNYS") - Sessions("XLON")),
]


@pytest.mark.parametrize("timetable", EVERYTHING, ids=str)
def test_a_dag_carries_its_timetable_as_json(timetable: Timetable) -> None:
    made = DAG("d", schedule=timetable, timezone="Europe/Berlin", start=NOON)
    spec = DagSpec.from_json(json.loads(json.dumps(made.spec().to_json())))
    # The zone of the DAG and its start are in it
    assert spec.timetable() == made.timetable == timetable.resolved("Europe/Berlin", NOON)
    if isinstance(spec.schedule, dict):
        assert spec.schedule["text"] == str(timetable)
    assert hash(spec.timetable())


def test_what_a_schedule_may_be() -> None:
    assert DAG("a").spec().schedule is DAG("b", schedule=Manual()).spec().schedule is None
    assert DAG("c", schedule=Cron("0 5 * * *", "Asia/Tokyo"), timezone="Asia/Tokyo").spec().schedule == "0 5 * * *"
    every = DAG("d", schedule=dt.timedelta(minutes=90)).spec()
    assert every.schedule == {
        "type": "every",
        "seconds": 5400.0,
        "anchor": "1970-01-01T00:00:00+00:00",
        "text": "every 1h 30m",
    }
    assert every.timetable().after(NOON) == dt.datetime(2026, 6, 1, 13, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"type": "tides"}, "unknown timetable 'tides'; it needs a newer release"),
        ({"type": "every"}, "not a timetable"),
        ({"type": "cron", "expression": "x", "timezone": "UTC"}, "bad schedule 'x'"),
        ("61 * * * *", "Bad minute"),
        ({}, "not a timetable"),
    ],
)
def test_a_stored_timetable_that_cannot_be_read(plain: object, message: str) -> None:
    with pytest.raises(TimetableError, match=message):
        from_plain(plain, "UTC")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(dt.timedelta(0)), "an interval must be a second or more, not 0s"),
        (lambda: DAG("d", schedule=dt.timedelta(hours=-1)), "DAG 'd': an interval must be a second or more, not -1h"),
        (lambda: Every(5), "must be a timedelta, not 5"),  # type: ignore[arg-type]
        (lambda: Every(HOUR, dt.datetime(2026, 1, 1)), "anchor 2026-01-01T00:00:00 has no time zone"),  # noqa: DTZ001
        (lambda: Once(dt.datetime(2026, 1, 1)), "has no time zone"),  # noqa: DTZ001
        (lambda: Dates([]), "Dates has no day"),
        (lambda: Dates("2026-12-24"), "Dates takes a list"),
        (lambda: Dates(["24.12.2026"]), "'24.12.2026' is not a day; write it as 2026-12-24"),
        (lambda: Dates([NOON]), "days without a time"),
        (lambda: Dates(["2026-12-24"], "Mars"), "unknown time zone 'Mars'"),
        (lambda: Union(Cron("@daily"), Dates(["2026-12-24"])), "no time of day"),
        (lambda: Except(Dates(["2026-12-24"]), Cron("@daily")), "only days can be taken away"),
        (lambda: Intersection(Cron("@daily")), "two or more"),
        (lambda: Cron("@daily") & "@daily", "takes timetables and calendars, not '@daily'"),  # type: ignore[operator]
        (lambda: DAG("d", schedule=Dates(["2026-12-24"])), "DAG 'd': schedule 2026-12-24 has days without a time"),
        (lambda: DAG("d", schedule=5), "DAG 'd': schedule must be a cron expression, a timedelta"),  # type: ignore[arg-type]
        (lambda: latest_only(), "outside of a DAG"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(make: Callable[[], object], message: str) -> None:
    with pytest.raises(AuthoringError) as caught:
        make()
    assert message in str(caught.value)
    assert caught.value.place.file == __file__


class TestLatestOnly:
    def run(self, logical_date: dt.datetime) -> dict[str, object]:
        with DAG("d", schedule=HOUR) as d:

            @task
            def report(context: Context) -> str:
                return "sent"

            latest_only() >> report()
        return d.test(logical_date=logical_date)

    def test_the_newest_run_goes_on(self) -> None:
        now = dt.datetime.now(dt.UTC)
        assert self.run(now)["report"] == "sent"

    def test_an_older_one_skips_what_comes_after(self) -> None:
        assert self.run(dt.datetime.now(dt.UTC) - 2 * HOUR) == {}
