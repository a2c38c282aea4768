"""The warehouse: schema `warehouse` of the PostgreSQL that `SLUICE_CONN_WAREHOUSE` names."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import psycopg

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS warehouse;
CREATE TABLE IF NOT EXISTS warehouse.temperature (
    run_id  text      NOT NULL,  -- each run loads its own rows: an earlier run cannot hide what this one lost
    city    text      NOT NULL,
    day     date      NOT NULL,
    at      timestamp NOT NULL,
    degrees numeric   NOT NULL,
    PRIMARY KEY (run_id, city, day, at)
);
"""


@contextmanager
def connection() -> Iterator[psycopg.Connection[Any]]:
    """A connection with one transaction: committed at the end, rolled back if the block raises."""
    url = os.environ.get("SLUICE_CONN_WAREHOUSE")
    if not url:
        raise RuntimeError("SLUICE_CONN_WAREHOUSE is not set; it is the postgresql:// URL to load into")
    with psycopg.connect(url, application_name="temperatures", connect_timeout=10) as open_connection:
        yield open_connection


def prepare() -> None:
    """Make the schema and the table unless they are there."""
    with connection() as c:
        # IF NOT EXISTS alone still fails when two runs come at the same moment.
        c.execute("SELECT pg_advisory_xact_lock(hashtext('warehouse.temperature'))")
        c.execute(SCHEMA)


def replace_day(run_id: str, city: str, day: str, rows: Iterable[tuple[str, Decimal]]) -> int:
    """Put a day's rows in place of what is there, in one transaction: doing it again changes nothing."""
    count = 0
    with connection() as c:
        c.execute("DELETE FROM warehouse.temperature WHERE run_id = %s AND city = %s AND day = %s", (run_id, city, day))
        with (
            c.cursor() as cursor,
            cursor.copy("COPY warehouse.temperature (run_id, city, day, at, degrees) FROM STDIN") as copy,
        ):
            for at, degrees in rows:
                copy.write_row((run_id, city, day, at, degrees))
                count += 1
    return count


def totals(run_id: str, city: str) -> tuple[int, Decimal]:
    """(rows, sum of degrees) that a run loaded."""
    with connection() as c:
        row = c.execute(
            "SELECT count(*), coalesce(sum(degrees), 0) FROM warehouse.temperature WHERE run_id = %s AND city = %s",
            (run_id, city),
        ).fetchone()
    assert row is not None
    return int(row[0]), Decimal(row[1])
