"""After each close of the New York Stock Exchange: the day's bars out of its trades. Half-days close at 13:00.

    runner backfill market_close --from 2025-01-01 --to 2025-12-31 --max-active 16

fills a year, one run for each session that there was.
"""

import csv
import datetime as dt
import io
import random
from collections.abc import Iterator
from typing import Any

from runner.authoring import Context, Market, dag, task

AFTER_CLOSE = Market("XNYS", "close", offset=dt.timedelta(minutes=15))
SYMBOLS = ("AAPL", "GOOG", "MSFT")


def trades(opened: dt.datetime, closed: dt.datetime) -> Iterator[tuple[dt.datetime, str, int, int]]:
    """(time, symbol, price in cents, shares): one a minute and symbol. Made up; the same for the same session."""
    chance = random.Random(opened.isoformat())
    prices = dict.fromkeys(SYMBOLS, 10_000)
    for minute in range(int((closed - opened).total_seconds()) // 60):
        for symbol in SYMBOLS:
            prices[symbol] += chance.randint(-5, 5)
            yield opened + dt.timedelta(minutes=minute), symbol, prices[symbol], chance.randint(1, 100)


@task(retries=3)
def collect(context: Context) -> str:
    """The session's trades as a file; returns its key. The data interval of a scheduled run is the session."""
    opened, closed = AFTER_CLOSE.interval(context.logical_date)  # of a run by hand too
    text = io.StringIO()
    csv.writer(text).writerows((at.isoformat(), *rest) for at, *rest in trades(opened, closed))
    key = f"trades/{closed:%Y-%m-%d}.csv"
    context.storage.put(key, text.getvalue().encode())
    return key


@task
def aggregate(key: str, context: Context) -> dict[str, dict[str, int]]:
    """Symbol → open, high, low, close (cents), volume and number of trades."""
    bars: dict[str, dict[str, int]] = {}
    for _, symbol, *numbers in csv.reader(io.StringIO(context.storage.get(key).decode())):
        price, shares = map(int, numbers)
        bar = bars.setdefault(symbol, {"open": price, "high": price, "low": price, "volume": 0, "trades": 0})
        bar["high"], bar["low"] = max(bar["high"], price), min(bar["low"], price)
        bar |= {"close": price, "volume": bar["volume"] + shares, "trades": bar["trades"] + 1}
    return bars


@task
def report(bars: dict[str, Any]) -> None:
    """A line for each symbol."""
    for symbol, bar in bars.items():
        print(f"{symbol} {bar['open']} → {bar['close']}, {bar['volume']} shares in {bar['trades']} trades")


@dag(schedule=AFTER_CLOSE, timezone="America/New_York", max_active_runs=32, tags=["example"])
def market_close() -> None:
    """Fifteen minutes after each close, on half-days after theirs; never on a day without a session."""
    report(aggregate(collect()))
