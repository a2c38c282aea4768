"""What an author writes, and the plain data it becomes."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from runner.authoring import DAG, AuthoringError, Context, Defer, Fail, Skip, TaskGroup, task
from runner.authoring.context import running
from runner.authoring.patience import Patience
from runner.authoring.sensors import (
    DeltaSensor,
    ExternalTaskSensor,
    FileSensor,
    HttpSensor,
    ReplicationSensor,
    S3KeySensor,
    Sensor,
    SqlSensor,
    TimeSensor,
)

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def test_a_sensor_becomes_plain_data_beside_its_patience() -> None:
    with DAG("d") as d:
        wait = S3KeySensor("wait", url="s3://b/in/{{ logical_date | ds }}/x.csv", poke_interval=dt.timedelta(seconds=5))

        @task
        def load(url: str) -> None: ...

        load(wait)  # type: ignore[arg-type]
    sensor, loads = d.spec().tasks
    assert sensor.kind == "sensor"
    assert sensor.sensor == {
        "kind": "s3",
        "url": "s3://b/in/{{ logical_date | ds }}/x.csv",
        "poke_interval": 5.0,
        "timeout": 7 * 86400.0,
        "soft_fail": False,
        "backoff": 1.0,
        "max_interval": 900.0,
    }
    assert (loads.kind, loads.inputs) == ("task", ("wait",))


def test_in_a_group_the_sensor_has_the_groups_name() -> None:
    with DAG("d") as d, TaskGroup("g"):
        wait = FileSensor("wait", path="/data/x")
    assert wait.task_id == "g.wait"
    assert d.spec().tasks[0].kind == "sensor"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: S3KeySensor("s", url="https://b/k"), "url must be s3://bucket/key"),
        (lambda: S3KeySensor("s", url="s3://b/{{ logical_dat }}"), "unknown name logical_dat"),
        (lambda: S3KeySensor("s", url="s3://b/k", timeout=5), "timeout of a sensor must be a timedelta above 0"),
        (lambda: S3KeySensor("s", url="s3://b/k", backoff=0.5), "backoff of a sensor must be a number from 1 to 10"),
        (lambda: S3KeySensor("s", url="s3://b/k", pokes=3), "S3KeySensor has no option pokes"),
        (lambda: FileSensor("s", path="in/x"), "path must be absolute"),
        (lambda: SqlSensor("s", connection="postgresql://u:secret@h/db", sql="SELECT 1"), "a URL with a password"),
        (lambda: HttpSensor("s", url="example.com"), "url must be http"),
        (lambda: TimeSensor("s", at=dt.time(9), timezone="Mars/Base"), "unknown time zone 'Mars/Base'"),
        (lambda: DeltaSensor("s", delta=3), "delta must be a timedelta"),  # type: ignore[arg-type]
        (lambda: ExternalTaskSensor("s", external_dag_id="a b"), "external_dag_id 'a b' must be"),
        (lambda: ReplicationSensor("s", connection="r", max_lag=dt.timedelta(-1)), "max_lag must be"),
    ],
)
def test_what_cannot_be_says_so_with_the_authors_line(make: Any, says: str) -> None:
    with pytest.raises(AuthoringError, match=says) as e, DAG("d"):
        make()
    assert e.value.place.file == __file__


def test_what_is_waited_for_cannot_be_another_tasks_output() -> None:
    @task
    def where() -> str:
        return "s3://b/k"

    with pytest.raises(AuthoringError, match="cannot depend on another task's output"), DAG("d"):
        FileSensor("wait", path="/x", queue="default")
        SqlSensor("s", connection="c", sql="SELECT :x", parameters={"x": where()})


def context(**more: Any) -> Context:
    return Context(dag_id="d", run_id="1", task_id="t", logical_date=NOON, **more)


def test_a_poke_of_ones_own_defers_until_it_is_true() -> None:
    class Row(Sensor):
        def __init__(self, task_id: str, answers: list[Any], **options: Any) -> None:
            super().__init__(task_id, **options)
            self.answers = answers

        def poke(self, context: Context) -> Any:
            return self.answers.pop(0)

    row = Row("row", [False, None, {"n": 1}], poke_interval=dt.timedelta(seconds=7))
    for _ in range(2):
        with pytest.raises(Defer) as e:
            row.execute(context())
        assert e.value.delay == dt.timedelta(seconds=7)
    assert row.execute(context()) == {"n": 1}


def test_a_function_that_is_poked() -> None:
    @task.sensor(poke_interval=dt.timedelta(seconds=0.5), poke_timeout=dt.timedelta(seconds=9), retries=2)
    def there() -> Any:
        return answers.pop(0)

    answers = [0, False, True]
    with running(context()), pytest.raises(Defer):
        there.function()
    assert there.options.timeout == dt.timedelta(seconds=9)
    with DAG("d") as d:
        there()
    assert d.test() == {"there": None}  # called again after its interval


def test_patience_ends() -> None:
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    with pytest.raises(Fail, match="waited 0:30:00 in vain"):
        Patience(timeout=dt.timedelta(minutes=30)).defer(context(waiting_since=long_ago))
    with pytest.raises(Skip):
        Patience(timeout=dt.timedelta(minutes=30), soft_fail=True).defer(context(waiting_since=long_ago))
    with pytest.raises(Defer) as e:  # the last look is at the end of the timeout, not an interval later
        Patience(timeout=dt.timedelta(hours=1, seconds=5)).defer(context(waiting_since=long_ago))
    assert e.value.delay <= dt.timedelta(seconds=5)


def test_backoff_is_geometric_without_memory() -> None:
    patience = Patience(poke_interval=dt.timedelta(seconds=2), backoff=3, max_interval=dt.timedelta(seconds=100))
    waited, pauses = dt.timedelta(0), []
    for _ in range(6):
        pauses.append(patience.pause(waited).total_seconds())
        waited += patience.pause(waited)
    assert pauses == [2, 6, 18, 54, 100, 100]
    assert Patience.from_json({**patience.to_json(), "kind": "s3"}) == patience


def test_in_dag_test_what_a_scheduler_would_wait_for_counts_as_there() -> None:
    with DAG("d") as d:

        @task
        def after() -> str:
            return "ran"

        TimeSensor("wait", at=dt.time(18, 30), timezone="Europe/Berlin") >> after()
    assert d.test()["after"] == "ran"
