"""Time-weighted returns of every account, once the day's balances have reached the replica.

The sensors wait in a scheduler and hold no slot; what computes runs on the queue `cpu`. Connections: `replica`, which
is read, and `product`, which is written.
"""

import datetime as dt
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from runner.authoring import connection, dag, task
from runner.authoring.operators import SQLOperator
from runner.authoring.sensors import ReplicationSensor, SqlSensor

ZONE = "America/New_York"
DAY = {"day": f'{{{{ interval_start | in_zone("{ZONE}") | ds }}}}'}
BALANCES = sa.text(
    "SELECT opened, closed, deposited FROM balance WHERE account = :account AND day <= :day ORDER BY day"
)
WRITE = sa.text(
    "INSERT INTO portfolio_return VALUES (:account, :day, :total) "
    "ON CONFLICT (account, day) DO UPDATE SET total = excluded.total"
)


def time_weighted(balances: list[tuple[Decimal, Decimal, Decimal]]) -> Decimal:
    """The return over all days, of (opened, closed, deposited during the day) each: deposits are no gain."""
    growth = Decimal(1)
    for opened, closed, deposited in balances:
        growth *= (closed - deposited) / opened
    return growth - 1


@task(queue="cpu", retries=3, retry_delay=dt.timedelta(seconds=30), connections=["replica"])
def compute(account: dict[str, Any]) -> dict[str, str]:
    """The return of one account; one instance of the task for each account there is."""
    engine = sa.create_engine(connection("replica").url(), poolclass=sa.NullPool)
    with engine.connect() as replica:
        balances = [tuple(row) for row in replica.execute(BALANCES, account)]
    return {**account, "total": f"{time_weighted(balances):.6f}"}


@task(retries=3, connections=["product"])
def write(returns: list[dict[str, str]]) -> int:
    """All of them in one transaction; a second time changes nothing."""
    engine = sa.create_engine(connection("product").url(), poolclass=sa.NullPool)
    with engine.begin() as product:
        product.execute(WRITE, returns)
    return len(returns)


@dag(schedule="30 0 * * *", timezone=ZONE, max_active_runs=1, tags=["example"])
def returns() -> None:
    """Every night: yesterday's returns."""
    caught_up = ReplicationSensor("caught_up", connection="replica", max_lag=dt.timedelta(minutes=1))
    arrived = SqlSensor(
        "arrived",
        connection="replica",
        sql="SELECT max(replicated_until) > CAST(:day AS date) FROM replication WHERE source = 'balance'",
        parameters=DAY,
        poke_interval=dt.timedelta(seconds=1),
        timeout=dt.timedelta(hours=6),
    )
    accounts = SQLOperator(
        "accounts",
        connection="replica",
        sql="SELECT account, CAST(day AS text) AS day FROM balance WHERE day = CAST(:day AS date) ORDER BY account",
        parameters=DAY,
        returns="rows",
    )
    [caught_up, arrived] >> accounts
    write(compute.map(account=accounts))
