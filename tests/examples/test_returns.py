"""returns: in one process, and on a real scheduler and worker that wait for the rows."""

import datetime as dt
import subprocess
import sys
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine

from runner import bundle
from runner.storage import Storage
from tests.examples.conftest import EXAMPLES
from tests.worker.conftest import Fleet, fleet

__all__ = ["fleet"]

TABLES = """
CREATE TABLE balance (account text, day date, opened numeric, closed numeric, deposited numeric);
CREATE TABLE replication (source text PRIMARY KEY, replicated_until timestamptz);
CREATE TABLE portfolio_return (account text, day date, total numeric, PRIMARY KEY (account, day));
"""
# Ann gains a tenth twice; the 50 that she brings in between are no gain. Ben loses half.
BALANCES = """
INSERT INTO balance SELECT 'ann', d - 1, 100, 160, 50 FROM (SELECT %(day)s::date AS d) AS x;
INSERT INTO balance SELECT 'ann', d, 160, 176, 0 FROM (SELECT %(day)s::date AS d) AS x;
INSERT INTO balance SELECT 'ben', d, 10, 5, 0 FROM (SELECT %(day)s::date AS d) AS x;
"""
NIGHT = dt.datetime(2026, 3, 3, 5, 30, tzinfo=dt.UTC)
RETURNS = [("ann", "0.210000"), ("ben", "-0.500000")]


@pytest.fixture
def product(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("REPLICA", "PRODUCT"):
        monkeypatch.setenv(f"SLUICE_CONN_{name}", database_url)
    with psycopg.connect(database_url, autocommit=True) as c:
        c.execute(TABLES)
        yield c


def fill(c: Any, day: str) -> None:
    for statement in BALANCES.strip().split("\n"):
        c.execute(statement, {"day": day})


def written(c: Any) -> list[tuple[str, str]]:
    return list(c.execute("SELECT account, total::text FROM portfolio_return ORDER BY account").fetchall())


def test_returns_leave_deposits_out_and_a_second_time_changes_nothing(
    product: Any, example: Any, dag_test: Any
) -> None:
    fill(product, "2026-03-03")
    assert example("returns")["returns"].test(NIGHT)["write"] == 2
    assert written(product) == RETURNS
    assert dag_test("returns", "returns", NIGHT)["write"] == {"state": "success", "value": 2}
    assert written(product) == RETURNS


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_scheduler_waits_for_the_rows_and_a_worker_computes(product: Any, fleet: Fleet, engine: Engine) -> None:
    # Given a scheduler, a worker of each queue, and a run whose rows have not arrived
    with engine.begin() as c:
        artifacts = Storage.open(fleet.environment["SLUICE_ARTIFACTS_URL"])
        bundle.publish(EXAMPLES / "returns", storage=artifacts, connection=c, who="test")
    environment = {**fleet.environment, "SLUICE_NODE_ID": "s1", "SLUICE_HOME": str(fleet.directory / "s1")}
    with (fleet.directory / "s1.log").open("ab") as log:
        command = [sys.executable, "-m", "runner.cli", "scheduler"]
        fleet.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    fleet.worker("n1")
    fleet.worker("n2", queues="cpu")
    fleet.wait(
        lambda: fleet.one("SELECT count(*) FROM node WHERE state = 'ready' AND node_id IN ('n1', 'n2')") == 2, 60
    )
    run = fleet.run("returns")
    fleet.wait(lambda: fleet.task(run, "caught_up") == "success", 60)
    assert fleet.task(run, "accounts") == "waiting" and fleet.task(run, "arrived", "node_id") is None
    # When they arrive
    day = fleet.one("SELECT (logical_date AT TIME ZONE 'America/New_York')::date FROM dag_run WHERE id = :r", r=run)
    fill(product, str(day))
    product.execute("INSERT INTO replication VALUES ('balance', now() + interval '2 days')")
    # Then it goes on, and the heavy part on the queue for that
    fleet.wait(lambda: fleet.state(run) == "success", 60)
    assert written(product) == RETURNS
    nodes = fleet.one(
        "SELECT string_agg(DISTINCT node_id, ',') FROM task_instance WHERE task_id = 'compute' AND map_index >= 0"
    )
    assert nodes == "n2"
