from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable, Iterator
from zoneinfo import ZoneInfo

import exchange_calendars
import pytest

from runner.authoring import AuthoringError
from runner.authoring.timetables import Cron, Market, Sessions, Timetable, TimetableError
from runner.authoring.timetables import sessions as sessions_module

UTC = dt.UTC
START, END = dt.datetime(2025, 1, 1, tzinfo=UTC), dt.datetime(2026, 1, 1, tzinfo=UTC)
DAY = dt.timedelta(days=1)


def instants(timetable: Timetable, start: dt.datetime = START, end: dt.datetime = END) -> Iterator[dt.datetime]:
    at = timetable.after(start - dt.timedelta(microseconds=1))
    while at and at < end:
        yield at
        at = timetable.after(at)


@pytest.mark.parametrize("exchange", ["XNYS", "XLON", "XTKS", "XHKG", "XASX", "CMES", "XSHG", "24/7"])
def test_a_year_agrees_with_the_exchange(exchange: str) -> None:
    calendar = exchange_calendars.get_calendar(exchange, start="2024-12-20", end="2026-01-10")
    half = set(calendar.early_closes)
    for at in ("open", "close"):
        times = calendar.opens if at == "open" else calendar.closes
        wanted = [(label, t.to_pydatetime()) for label, t in times.items()]
        for offset in (dt.timedelta(0), dt.timedelta(minutes=15), dt.timedelta(hours=-3)):
            expected = [t + offset for _, t in wanted if START <= t + offset < END]
            assert list(instants(Market(exchange, at, offset))) == expected
        expected = [t for label, t in wanted if START <= t < END and label not in half]
        assert list(instants(Market(exchange, at, half_days="skip"))) == expected
        expected = [t for label, t in wanted if START <= t < END and label in half]
        if not expected:
            continue  # an exchange without half-days
        assert list(instants(Market(exchange, at, half_days="only"))) == expected


def test_the_data_interval_is_the_session() -> None:
    # Given the day after Thanksgiving, when New York closes at 13:00
    opens, closes = dt.datetime(2025, 11, 28, 14, 30, tzinfo=UTC), dt.datetime(2025, 11, 28, 18, tzinfo=UTC)
    late = dt.timedelta(minutes=15)
    assert Market("XNYS", "close", late).interval(closes + late) == (opens, closes)
    assert Market("XNYS", "open").interval(opens) == (opens, closes)
    # A run by hand at another time stands for the time since the last close
    by_hand = closes + 5 * late
    assert Market("XNYS").interval(by_hand) == (closes, by_hand)


def test_a_cron_on_sessions_only() -> None:
    zone = ZoneInfo("America/New_York")
    days = [d.date() for d in exchange_calendars.get_calendar("XNYS", start="2025-01-01", end="2025-12-31").sessions]
    found = list(instants(Cron("30 9 * * *", "America/New_York") & Sessions("XNYS")))
    assert found == [dt.datetime.combine(d, dt.time(9, 30), tzinfo=zone) for d in days]
    rest = list(instants(Cron("30 9 * * *", "America/New_York") - Sessions("XNYS")))
    assert len(found) + len(rest) == 365 and not set(found) & set(rest)


def test_a_session_is_a_day_where_the_exchange_is() -> None:
    # 23:30 UTC is the next morning in Tokyo: it belongs to the sessions from Monday on, so to Sunday..Thursday
    found = instants(Cron("30 23 * * *") & Sessions("XTKS"), START, START + 60 * DAY)
    tokyo = {d.date() for d in exchange_calendars.get_calendar("XTKS", start="2025-01-01", end="2025-03-10").sessions}
    assert {t.date() + DAY for t in found} == {d for d in tokyo if d <= dt.date(2025, 3, 1)}


def test_days_of_two_exchanges() -> None:
    new_york = {
        d.date() for d in exchange_calendars.get_calendar("XNYS", start="2025-01-01", end="2025-12-31").sessions
    }
    london = {d.date() for d in exchange_calendars.get_calendar("XLON", start="2025-01-01", end="2025-12-31").sessions}
    noon = Cron("0 15 * * *")
    for calendar, days in (
        (Sessions("XNYS") & Sessions("XLON"), new_york & london),
        (Sessions("XNYS") | Sessions("XLON"), new_york | london),
        (Sessions("XNYS") - Sessions("XLON"), new_york - london),
    ):
        assert [t.date() for t in instants(noon & calendar)] == sorted(days)


def test_beyond_what_is_known() -> None:
    last = exchange_calendars.get_calendar("XSHG").bound_max().year
    after_the_end = dt.datetime(last + 1, 2, 1, tzinfo=UTC)
    for timetable in (Market("XSHG"), Cron("0 9 * * *") & Sessions("XSHG")):
        with pytest.raises(TimetableError, match=f"exchange XSHG is known until {last}-12-31 only"):
            timetable.after(after_the_end)
    # Before the beginning it waits for it
    first = Market("XTKS").after(dt.datetime(1950, 1, 1, tzinfo=UTC))
    assert first and first.year == 1997
    assert not Sessions("XTKS").on(dt.datetime(1950, 1, 1, tzinfo=UTC))[0]


def test_an_exchange_that_does_not_exist() -> None:
    for timetable in (Market("XXXX"), Cron("@daily") & Sessions("XXXX"), Cron("@daily") - Sessions("XXXX")):
        with pytest.raises(TimetableError, match=r"unknown exchange 'XXXX'; e.g. XNYS"):
            timetable.after(START)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions_module.sessions_of_year.cache_clear()
    sessions_module._calendar.cache_clear()
    monkeypatch.setitem(sys.modules, "exchange_calendars", None)
    with pytest.raises(TimetableError, match=r"pip install 'sluice\[calendars\]'"):
        Market("XNYS").after(START)


def test_nobody_pays_for_pandas_who_asks_no_market() -> None:
    code = (
        "import sys, datetime as dt\nfrom runner.authoring import *\n"
        "DAG('a', schedule=Market('XNYS')).spec()\n"
        "DAG('b', schedule='@daily').timetable.after(dt.datetime.now(dt.UTC))\n"
        "assert 'pandas' not in sys.modules, 'pandas was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Market("XNYS", at="noon"), "at must be 'open' or 'close', not 'noon'"),
        (lambda: Market("XNYS", half_days="maybe"), "half_days must be one of include, skip, only"),
        (lambda: Market("XNYS", offset=15), "offset must be a timedelta"),  # type: ignore[arg-type]
        (lambda: Market(""), "ISO code"),
        (lambda: Sessions(None), "ISO code"),  # type: ignore[arg-type]
    ],
)
def test_a_market_that_cannot_be_is_refused_where_it_is_written(make: Callable[[], object], message: str) -> None:
    with pytest.raises(AuthoringError, match=message) as caught:
        make()
    assert caught.value.place.file == __file__
