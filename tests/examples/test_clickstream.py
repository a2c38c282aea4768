"""clickstream: a DAG for each customer, from a file and from an API, from an S3 into a warehouse."""

import datetime as dt
import gzip
import json
from typing import Any

import boto3
import psycopg
import pytest

HOUR = dt.datetime(2026, 3, 1, 5, tzinfo=dt.UTC)
EVENTS = {"page": 3, "add_to_cart": 2, "order": 1}


@pytest.fixture
def warehouse(database_url: str, aws: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Tables for acme, and an hour of its events in S3."""
    monkeypatch.setenv("SLUICE_CONN_WAREHOUSE", database_url)
    monkeypatch.setenv("CLICKSTREAM_BUCKET", "landing-acme")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="landing-acme", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    with psycopg.connect(database_url, autocommit=True) as c:
        c.execute("CREATE SCHEMA acme")
        for event, rows in EVENTS.items():
            c.execute(f"CREATE TABLE acme.{event} (hour timestamptz, visitor text, properties json)")  # type: ignore[arg-type]
            lines = [f'{HOUR.isoformat()},v{n},"{{""n"": {n}}}"' for n in range(rows)]
            body = gzip.compress("\n".join(["hour,visitor,properties", *lines, ""]).encode())
            s3.put_object(Bucket="landing-acme", Key=f"acme/2026-03-01/05/{event}.csv.gz", Body=body)
        yield c


def test_an_hour_of_events_reaches_its_tables_and_a_second_time_changes_nothing(
    warehouse: Any, example: Any, dag_test: Any
) -> None:
    dags = example("clickstream")
    assert set(dags) == {"clickstream_acme", "clickstream_globex"}
    assert dags["clickstream_acme"].test(HOUR)["total"] == 6
    found = dag_test("clickstream", "clickstream_acme", HOUR)
    assert found["total"]["value"] == 6 and len(found) == 7
    for event, rows in EVENTS.items():
        assert warehouse.execute(f"SELECT count(*) FROM acme.{event}").fetchone() == (rows,)


def test_customers_come_from_an_api(example: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    web.answers["/customers"] = json.dumps([{"name": "initech", "events": ["print"]}]).encode()
    monkeypatch.setenv("CLICKSTREAM_CUSTOMERS", f"http://{web.host}/customers")
    [(dag_id, made)] = example("clickstream").items()
    tasks = {t.task_id: t for t in made.spec().tasks}
    assert dag_id == "clickstream_initech" and list(tasks) == ["await_print", "load_print", "total"]
    assert tasks["await_print"].sensor["kind"] == "s3"
    assert tasks["load_print"].outlets == ("warehouse/initech/print",)
