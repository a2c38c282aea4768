"""market_close: half-days, and a year's backfill beside what exchange_calendars knows."""

import datetime as dt
from pathlib import Path
from typing import Any

import exchange_calendars
from sqlalchemy import Engine

from runner import bundle
from runner.scheduler import backfill
from runner.storage import Storage
from tests.examples.conftest import EXAMPLES

FULL = dt.datetime(2025, 7, 2, 20, 15, tzinfo=dt.UTC)
HALF = dt.datetime(2025, 7, 3, 17, 15, tzinfo=dt.UTC)  # closes at 13:00 in New York


def test_a_half_day_has_fewer_trades(example: Any, dag_test: Any, tmp_path: Path) -> None:
    d = example("market_close")["market_close"]
    full = d.test(FULL, storage_url=f"file://{tmp_path}/here")["aggregate"]
    half = d.test(HALF, storage_url=f"file://{tmp_path}/here")["aggregate"]
    assert {bar["trades"] for bar in full.values()} == {390}
    assert {bar["trades"] for bar in half.values()} == {210}
    assert all(bar["low"] <= min(bar["open"], bar["close"]) <= bar["high"] for bar in half.values())
    assert dag_test("market_close", "market_close", HALF)["aggregate"]["value"] == half


def test_a_years_backfill_has_a_run_for_each_session(engine: Engine, tmp_path: Path) -> None:
    # Given the example, pushed
    with engine.begin() as c:
        artifacts = Storage.open(f"file://{tmp_path}/artifacts")
        bundle.publish(EXAMPLES / "market_close", storage=artifacts, connection=c, who="test")
        # When a year's backfill is planned
        span = dt.datetime(2025, 1, 1, tzinfo=dt.UTC), dt.datetime(2025, 12, 31, 23, 59, tzinfo=dt.UTC)
        planned = backfill.plan(c, backfill.Wish("market_close", *span))
        filed = backfill.start(c, backfill.Wish("market_close", *span), planned, by="test")
    # Then it is the exchange's own sessions, each a quarter of an hour after its own close
    schedule = exchange_calendars.get_calendar("XNYS", start="2025-01-01", end="2025-12-31").schedule
    closes = [close.to_pydatetime() for close in schedule["close"]]
    assert [i.logical_date for i in planned.instants] == [close + dt.timedelta(minutes=15) for close in closes]
    assert len(closes) == 250 and sum(close.hour < 20 and close.month in (7, 11, 12) for close in closes) == 3
    assert HALF in [i.logical_date for i in planned.instants]
    assert [i.end for i in planned.instants] == closes
    assert filed is not None
