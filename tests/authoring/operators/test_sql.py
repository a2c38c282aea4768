"""SQL on a real PostgreSQL, and on what else SQLAlchemy reaches."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from runner.authoring import DAG, Connection, Context, task
from runner.authoring.operators import SQLError, SQLOperator
from runner.localcloud.engines import Postgres


@pytest.fixture(scope="module")
def db(postgres: Postgres) -> str:
    """The URL of an empty database."""
    return postgres.create_database("operators_sql")


@pytest.fixture(params=["postgresql", "sqlite"])
def any_db(request: pytest.FixtureRequest, db: str, tmp_path: Path) -> str:
    return db if request.param == "postgresql" else f"sqlite:///{tmp_path}/db"


def test_statements_are_one_transaction_and_the_last_result_is_the_value(
    context: Context, any_db: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given a table filled by several statements, with values bound to names
    SQLOperator("drop", connection=any_db, sql="DROP TABLE IF EXISTS t").execute(context)
    fill = ["CREATE TABLE t (id int, name text)", "INSERT INTO t VALUES (:one, :name), (2, NULL)"]
    values = {"one": 1, "name": "it's {{ params.who }}"}
    SQLOperator("fill", connection=any_db, sql=fill, parameters=values).render(context).execute(context)
    assert "2 rows: INSERT INTO t" in capsys.readouterr().out

    # Then a query gives what is asked for
    def ask(returns: str, sql: str = "SELECT * FROM t ORDER BY id") -> object:
        return SQLOperator("ask", connection=any_db, sql=sql, returns=returns).execute(context)  # type: ignore[arg-type]

    assert ask("rows") == [{"id": 1, "name": "it's ann"}, {"id": 2, "name": None}]
    assert ask("first") == {"id": 1, "name": "it's ann"}
    assert ask("value") == 1
    assert ask("none") is None
    assert ask("first", "SELECT * FROM t WHERE id > 5") is ask("value", "SELECT * FROM t WHERE id > 5") is None

    # And when the last of several statements fails, nothing of them is left
    with pytest.raises(SQLError, match=r"connection (postgresql|sqlite): .*gone"):
        SQLOperator("bad", connection=any_db, sql=["DELETE FROM t", "DELETE FROM gone"]).execute(context)
    assert ask("value", "SELECT count(*) FROM t") == 2


def test_values_that_json_does_not_know(context: Context, db: str) -> None:
    sql = """SELECT '2026-03-01T12:00Z'::timestamptz AT TIME ZONE 'UTC' AS at, '2026-03-01'::date AS day,
        1.10::numeric AS exact, '1 minute'::interval AS span, ARRAY[1,2] AS list,
        '{"a": 1}'::jsonb AS json, '100%' AS p"""
    with DAG("values") as d:
        SQLOperator("values", connection="db", sql=sql, returns="first")
        SQLOperator("bytes", connection="db", sql="SELECT '\\x00'::bytea AS b", returns="value")
    with pytest.raises(TypeError, match="task 'bytes' returned a bytes"):
        d.test(connections={"db": db})
    values = SQLOperator("values", connection=db, sql=sql, returns="first").execute(context)
    assert values == {
        "at": "2026-03-01T12:00:00", "day": "2026-03-01", "exact": "1.10", "span": 60.0, "list": [1, 2],
        "json": {"a": 1}, "p": "100%",
    }  # fmt: skip


def test_an_upstream_value_is_a_parameter(db: str) -> None:
    @task
    def days() -> list[str]:
        return ["2026-03-01", "2026-03-02"]

    with DAG("bound") as d:
        SQLOperator(
            "count", connection="db", sql="SELECT count(*) FROM unnest(:days ::date[])", parameters={"days": days()},
            returns="value",
        )  # fmt: skip
    assert d.test(connections={"db": db})["count"] == 2


def test_too_many_rows_and_no_rows_are_said(context: Context, db: str) -> None:
    sql = "SELECT generate_series(1, 11) AS n"
    assert len(SQLOperator("s", connection=db, sql=sql, returns="rows", max_rows=11).execute(context)) == 11
    with pytest.raises(SQLError, match="more than max_rows=10 rows"):
        SQLOperator("s", connection=db, sql=sql, returns="rows", max_rows=10).execute(context)
    with pytest.raises(SQLError, match="the last statement returns no rows"):
        SQLOperator("s", connection=db, sql="SET work_mem = '1MB'", returns="rows").execute(context)


def test_what_refuses_a_transaction_runs_without(context: Context, db: str) -> None:
    with pytest.raises(SQLError, match="VACUUM cannot run inside a transaction"):
        SQLOperator("v", connection=db, sql="VACUUM").execute(context)
    SQLOperator("v", connection=db, sql="VACUUM", autocommit=True).execute(context)


def test_a_database_that_is_not_there_is_one_line_without_its_password(context: Context) -> None:
    away = Connection(name="ware", type="postgresql", host="127.0.0.1", port=9, login="u", password="s3cr3t")
    with pytest.raises(SQLError, match=r"connection ware: .*127\.0\.0\.1") as e:
        SQLOperator("s", connection=away, sql="SELECT 1").execute(context)
    with pytest.raises(SQLError, match="driver of 'nosuch' among the bundle's requirements") as e2:
        SQLOperator("s", connection="nosuch://u:s3cr3t@h/d", sql="SELECT 1").execute(context)
    assert "s3cr3t" not in f"{e.value} {e2.value}"


def test_a_task_that_is_stopped_cancels_its_query(db: str) -> None:
    # Given a task in the middle of a long query
    code = f"""
import datetime as dt
from runner.authoring import Context
from runner.authoring.operators import SQLOperator
context = Context(dag_id="d", run_id="1", task_id="t", logical_date=dt.datetime.now(dt.UTC))
SQLOperator("s", connection={db!r}, sql="SELECT pg_sleep(1000)").execute(context)
"""
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    with psycopg.connect(db, autocommit=True) as watch:

        def wait_until(count: int) -> None:
            deadline = time.monotonic() + 60
            while watch.execute(running).fetchone() != (count,):
                assert time.monotonic() < deadline, f"not {count} queries"
                time.sleep(0.05)

        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, env={**os.environ})
        wait_until(1)
        # When it is told to stop, it dies of that, and the query is over
        child.terminate()
        assert child.wait(60) == -signal.SIGTERM
        wait_until(0)
