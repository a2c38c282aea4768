"""Each kind of sensor on the real thing it looks for."""

from __future__ import annotations

import datetime as dt
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import text

from runner.authoring import DAG, Asset, task
from runner.authoring.sensors import (
    AssetSensor,
    DeltaSensor,
    ExternalTaskSensor,
    FileSensor,
    HttpSensor,
    ReplicationSensor,
    S3KeySensor,
    SqlSensor,
    TimeSensor,
)
from runner.scheduler.sense.time import moment
from runner.state import assets
from tests.scheduler.sense.conftest import DATE, Waits, until

SOON = dt.timedelta(seconds=0.5)


@task
def after(found: Any) -> None: ...


# --- S3 -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(aws: str, request: pytest.FixtureRequest) -> Any:
    s3 = boto3.client("s3")
    name = f"b{abs(hash(request.node.nodeid))}"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return boto3.resource("s3").Bucket(name)


def test_a_key_with_a_date_in_it_is_found_and_what_follows_is_ready(waits: Waits, bucket: Any) -> None:
    with DAG("d") as d:
        after(S3KeySensor("wait", url=f"s3://{bucket.name}/in/{{{{ logical_date | ds }}}}/x.csv", poke_interval=SOON))
    waits.push(d)
    waits.run()
    loop = waits.sense()
    until(lambda: loop.waiting)
    bucket.put_object(Key="in/2026-01-03/x.csv", Body=b"")
    bucket.put_object(Key="in/2026-01-02/x.csv.tmp", Body=b"")
    assert waits.task("wait").state == "deferred"
    bucket.put_object(Key="in/2026-01-02/x.csv", Body=b"")
    assert waits.over().state == "success"
    assert waits.task("wait").value == f"s3://{bucket.name}/in/2026-01-02/x.csv"
    assert waits.task("after").state == "ready"


def test_many_keys_of_a_folder_and_wildcards_are_each_found_or_not(waits: Waits, bucket: Any) -> None:
    keys = {
        "plain": "in/a.csv",
        "deep": "in/deep/b.csv",
        "star": "in/c-*.csv",
        "set": "in/d[12]?.csv",
        "top": "*.done",
        "not": "in/a.csv2",
        "nothing": "in/e*.csv",
    }
    with DAG("d") as d:
        for name, key in keys.items():
            S3KeySensor(name, url=f"s3://{bucket.name}/{key}", poke_interval=SOON)
    for key in ("in/a.csv", "in/b/noise", "in/c-7.csv", "in/c-8.csv", "in/d2x.csv", "in/deep/b.csv", "z/all.done"):
        bucket.put_object(Key=key, Body=b"")
    waits.push(d)
    waits.run()
    waits.sense()
    found = {name: waits.over(name).value for name in ("plain", "deep", "star", "set", "top")}
    there = {
        "plain": "in/a.csv",
        "deep": "in/deep/b.csv",
        "star": "in/c-7.csv",
        "set": "in/d2x.csv",
        "top": "z/all.done",
    }
    assert found == {name: f"s3://{bucket.name}/{key}" for name, key in there.items()}
    assert waits.task("not").state == waits.task("nothing").state == "deferred"


def test_a_bucket_that_does_not_exist_fails_with_one_line(waits: Waits, aws: str) -> None:
    with DAG("d") as d:
        S3KeySensor("one", url="s3://nobodys-bucket/x")
        S3KeySensor("many", url="s3://nobodys-bucket/y/*.csv")
    waits.push(d)
    waits.run()
    waits.sense()
    for name in ("one", "many"):
        row = waits.over(name)
        assert (row.state, row.error) == ("failed", "s3://nobodys-bucket: there is no such bucket")


# --- SQL ------------------------------------------------------------------------------------------------------


def test_a_row_that_appears(waits: Waits, database_url: str) -> None:
    with waits.engine.begin() as c:
        c.execute(text("CREATE TABLE sales (day date)"))
    with DAG("d") as d:
        SqlSensor(
            "wait",
            connection=database_url,
            sql="SELECT count(*) FROM sales WHERE day = CAST(:day AS date)",
            parameters={"day": "{{ logical_date | ds }}"},
            poke_interval=SOON,
        )
        ReplicationSensor("replica", connection=database_url)
    waits.push(d)
    waits.run()
    waits.sense()
    assert waits.over("replica").state == "success"
    assert waits.task("wait").state == "deferred"
    with waits.engine.begin() as c:
        c.execute(text("INSERT INTO sales VALUES ('2026-01-02')"))
    assert waits.over().value == 1


@pytest.mark.parametrize(
    ("connection", "sql", "says"),
    [
        ("nobodys", "SELECT 1", "there is no connection 'nobodys'"),
        ("", "SELECT nonsense", 'column "nonsense" does not exist'),
        ("oddbase://h/x", "SELECT 1", "oddbase"),
    ],
)
def test_a_question_that_makes_no_sense_fails(
    waits: Waits, database_url: str, connection: str, sql: str, says: str
) -> None:
    with DAG("d") as d:
        SqlSensor("wait", connection=connection or database_url, sql=sql)
    waits.push(d)
    waits.run()
    waits.sense()
    row = waits.over()
    assert row.state == "failed"
    assert says in row.error
    assert "\n" not in row.error


def test_a_database_that_is_away_is_shown_and_asked_again(
    waits: Waits, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_CONN_WAREHOUSE", "postgresql://127.0.0.1:1/none")
    with DAG("d") as d:
        SqlSensor("wait", connection="warehouse", sql="SELECT 7", poke_interval=SOON)
    waits.push(d)
    waits.run()
    waits.sense()
    said = until(lambda: waits.task("wait").error)
    assert "127.0.0.1" in said
    assert waits.task("wait").state == "deferred"
    monkeypatch.setenv("SLUICE_CONN_WAREHOUSE", database_url)
    row = waits.over()
    assert (row.state, row.value, row.error) == ("success", 7, None)


# --- HTTP -----------------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, str]] = {}

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, ""))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Answers.answers = {}
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_a_url_answers(waits: Waits, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CONN_API", web.replace("//", "//ann:secret@"))
    with DAG("d") as d:
        HttpSensor("there", url=f"{web}/there/{{{{ logical_date | ds }}}}", poke_interval=SOON)
        HttpSensor("says", connection="api", url="says", contains="ready", poke_interval=SOON)
        HttpSensor("json", connection="api", url="/json", json={"state": "done"}, poke_interval=SOON)
        HttpSensor("gone", url=f"{web}/gone", poke_interval=SOON)
    Answers.answers = {"/gone": (410, ""), "/says": (503, ""), "/json": (200, json.dumps({"state": "running"}))}
    waits.push(d)
    waits.run()
    waits.sense()
    row = waits.over("gone")
    assert (row.state, row.error) == ("failed", f"{web}/gone: 410 Gone")
    assert "503" in until(lambda: waits.task("says").error)
    assert waits.task("there").state == waits.task("json").state == "deferred"
    Answers.answers = {
        "/there/2026-01-02": (204, ""),
        "/says": (200, "it is ready"),
        "/json": (200, json.dumps({"state": "done", "rows": 3})),
    }
    assert waits.over("there").state == waits.over("says").state == "success"
    assert waits.over("json").value == {"state": "done", "rows": 3}


# --- files, other runs, times ---------------------------------------------------------------------------------


def test_a_file_that_appears(waits: Waits, tmp_path: Path) -> None:
    with DAG("d") as d:
        FileSensor("wait", path=f"{tmp_path}/*/{{{{ logical_date | ds_nodash }}}}.csv", poke_interval=SOON)
    waits.push(d)
    waits.run()
    loop = waits.sense()
    until(lambda: loop.waiting)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "20260102.csv").touch()
    assert waits.over().value == f"{tmp_path}/in/20260102.csv"


def test_another_run_and_a_task_of_it(waits: Waits) -> None:
    with DAG("other") as other:

        @task
        def made() -> None: ...

        @task
        def late() -> None: ...

        made()
        late()
    with DAG("d") as d:
        options: Any = {"external_dag_id": "other", "poke_interval": SOON}
        ExternalTaskSensor("run", **options)
        ExternalTaskSensor("task", external_task_id="made", **options)
        ExternalTaskSensor("fails", external_task_id="late", **options)
        ExternalTaskSensor("any_end", external_task_id="late", wait_for=("success", "failed"), **options)
        ExternalTaskSensor("no_task", external_task_id="none", **options)
        ExternalTaskSensor("day_before", offset=dt.timedelta(days=-1), **options)
    waits.push(d, other)
    waits.run()
    waits.sense()
    run = waits.run("other")  # later than who waits for it
    assert waits.over("no_task").error == "the run of DAG 'other', 2026-01-02T00:00:00+00:00 has no task 'none'"
    with waits.engine.begin() as c:
        from runner.state import transitions

        transitions.mark(c, run, ["made"], "success", by="test")
        transitions.mark(c, run, ["late"], "failed", by="test")
    assert waits.over("task").state == waits.over("any_end").state == "success"
    assert waits.over("fails").state == "failed"
    assert "the run of DAG 'other', 2026-01-02T00:00:00+00:00 has ended as failed" in waits.over("run").error
    assert waits.task("day_before").state == "deferred"


def test_times_come_by_themselves(waits: Waits) -> None:
    now = dt.datetime.now(dt.UTC)
    with DAG("d") as d:
        DeltaSensor("past", delta=dt.timedelta(minutes=-1))
        DeltaSensor("soon", delta=dt.timedelta(seconds=2))
        DeltaSensor("far", delta=dt.timedelta(hours=2))
        TimeSensor("at", at=(now + dt.timedelta(hours=3)).time())
    waits.push(d)
    waits.run(date=now)
    waits.sense()
    assert waits.over("past").state == "success"
    ended = waits.over("soon").ended_at
    assert dt.timedelta(seconds=2) <= ended - now
    assert waits.task("far").state == waits.task("at").state == "deferred"


@pytest.mark.parametrize(
    ("after", "at", "zone", "expected"),
    [
        ("2026-06-01T00:00+00:00", "18:30", "UTC", "2026-06-01T18:30+00:00"),
        ("2026-06-01T18:30+00:00", "18:30", "UTC", "2026-06-01T18:30+00:00"),
        ("2026-06-01T18:31+00:00", "18:30", "UTC", "2026-06-02T18:30+00:00"),
        ("2026-06-01T00:00+00:00", "09:00", "Asia/Tokyo", "2026-06-01T00:00+00:00"),
        ("2026-03-29T00:00+00:00", "02:30", "Europe/Berlin", "2026-03-29T01:00+00:00"),  # skipped: the change itself
        ("2026-10-25T00:00+00:00", "02:30", "Europe/Berlin", "2026-10-25T00:30+00:00"),  # twice: the first
        ("2026-03-08T00:00+00:00", "02:15", "America/New_York", "2026-03-08T07:00+00:00"),
    ],
)
def test_a_time_of_day_in_a_zone(after: str, at: str, zone: str, expected: str) -> None:
    condition = {"kind": "time", "after": after, "at": at, "timezone": zone}
    assert moment(condition) == dt.datetime.fromisoformat(expected)


def test_a_template_without_a_value_fails_the_sensor(waits: Waits) -> None:
    with DAG("d") as d:
        FileSensor("wait", path="/data/{{ params.customer }}/x")
    waits.push(d)
    waits.run()
    waits.sense()
    row = waits.over()
    assert row.state == "failed"
    assert "customer" in row.error
    assert row.run_id and DATE


def test_an_asset_that_is_updated(waits: Waits) -> None:
    with DAG("d") as d:
        AssetSensor("wait", asset="s3://lake/a", poke_interval=SOON)
        AssetSensor("long_ago", asset="s3://lake/a", since="2100-01-01T00:00+00:00", poke_interval=SOON)
    with DAG("uses", schedule=Asset("s3://lake/a")) as uses:
        after(None)
    waits.push(d, uses)
    waits.run()
    loop = waits.sense()
    until(lambda: len(loop.waiting) == 2)
    with waits.engine.begin() as c:
        assert assets.update(c, "s3://lake/a", extra={"rows": 5}, who="ann") == 1
    assert waits.over().value["extra"] == {"rows": 5}
    assert waits.task("long_ago").state == "deferred"
