"""The example bundle as an author would test it: in one process, on a real warehouse and a real store."""

import datetime as dt
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

import runner.examples
from runner.authoring import DAG, Context
from runner.bundle import load, validate
from runner.bundle.load import _forget
from runner.localcloud.judge import judge, read_ledger
from runner.storage import Storage

BUNDLE = Path(next(iter(runner.examples.__path__))) / "temperatures"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def dags() -> Iterator[dict[str, DAG]]:
    yield load(BUNDLE)
    _forget()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.open(f"file://{tmp_path}/storage")


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLUICE_LEDGER", str(tmp_path / "ledger"))
    return tmp_path / "ledger"


@pytest.fixture
def warehouse(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[psycopg.Connection[Any]]:
    monkeypatch.setenv("SLUICE_CONN_WAREHOUSE", database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def a_context(task_id: str = "t", **values: Any) -> Context:
    return Context(**{"dag_id": "d", "run_id": "1", "task_id": task_id, "logical_date": NOON} | values)


def test_the_bundle_is_valid_and_has_hundreds_of_tasks() -> None:
    specs = {s.dag_id: s for s in validate(BUNDLE)}
    assert set(specs) == {"temperatures", "temperature_of_the_hour", "hello"}
    tasks = {t.task_id: t for t in specs["temperatures"].tasks}
    assert len(tasks) == 1 + 2 + 2 * 365 + 1
    assert tasks["load_sf_2010-01-31"].queue == "cpu" and tasks["load_seattle_2010-01-01"].queue == "default"
    assert tasks["load_sf_2010-12-31"].upstream == ("split_sf",)
    assert len(tasks["check"].upstream) == 2 + 730 and tasks["check"].inputs == ("split_seattle", "split_sf")
    assert len(specs["hello"].tasks) == 4
    assert specs["temperature_of_the_hour"].schedule == "@hourly"
    assert all(t.retries == 3 for t in specs["temperature_of_the_hour"].tasks)


def test_a_year_of_temperatures_reaches_the_warehouse(
    dags: dict[str, DAG], warehouse: psycopg.Connection[Any], storage: Storage, ledger: Path
) -> None:
    # When the whole DAG runs
    results = dags["temperatures"].test(NOON, storage_url=storage.url)

    # Then every reading of both files is there, to the tenth of a degree (counted once with other tools)
    assert results["check"] == {
        "seattle": {"rows": 8759, "sum": "455713.5"},
        "sf": {"rows": 8759, "sum": "498598.3"},
    }
    counted = warehouse.execute(
        "SELECT city, count(*), sum(degrees), min(at), max(at) FROM warehouse.temperature GROUP BY city ORDER BY city"
    ).fetchall()
    first, last = dt.datetime(2010, 1, 1), dt.datetime(2010, 12, 31, 23)  # noqa: DTZ001
    assert counted == [
        ("seattle", 8759, Decimal("455713.5"), first, last),
        ("sf", 8759, Decimal("498598.3"), first, last),
    ]
    # and a file per city and day went through storage
    assert len(storage.list("files/temperatures")) == 730
    # and the ledger has every task once
    verdict = judge(read_ledger(ledger), [("test", t) for t in dags["temperatures"].nodes])
    assert verdict.summary() == "tasks=734 lost=0 killed=0 overlapped=0 repeated=0" and verdict.ok


def test_loading_a_day_again_changes_nothing_and_a_lost_one_is_found(
    dags: dict[str, DAG], warehouse: psycopg.Connection[Any], storage: Storage
) -> None:
    d = dags["temperatures"]

    def run(task_id: str) -> Any:
        return d.run_task(task_id, a_context(task_id, storage_url=storage.url), {})

    def check() -> Any:
        return d.nodes["check"].function([split], context=a_context("check"))

    # Given a warehouse with one city loaded but for one day
    run("prepare")
    split = run("split_sf")
    for n in range(364):
        run(f"load_sf_{dt.date(2010, 1, 1) + dt.timedelta(days=n)}")
    with pytest.raises(ValueError, match=r"sf: the warehouse has 8735 rows .* the source 8759"):
        check()

    # When the day is loaded, twice, then nothing is missing or double
    assert run("load_sf_2010-12-31") == run("load_sf_2010-12-31") == 24
    assert check() == {"sf": {"rows": 8759, "sum": "498598.3"}}

    # And a tenth of a degree is noticed
    warehouse.execute("UPDATE warehouse.temperature SET degrees = degrees + 0.1 WHERE at = '2010-07-01 12:00'")
    with pytest.raises(ValueError, match=r"sum 498598\.4, the source 8759 with sum 498598\.3"):
        check()


def test_a_day_that_is_missing_in_storage_fails_by_name(
    dags: dict[str, DAG], warehouse: psycopg.Connection[Any], storage: Storage
) -> None:
    with pytest.raises(Exception, match=r"there is no files/temperatures/1/sf/2010-05-05\.csv"):
        dags["temperatures"].run_task("load_sf_2010-05-05", a_context(storage_url=storage.url), {})


def test_a_warehouse_that_is_not_configured_says_so(dags: dict[str, DAG], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUICE_CONN_WAREHOUSE", raising=False)
    with pytest.raises(RuntimeError, match="SLUICE_CONN_WAREHOUSE is not set"):
        dags["temperatures"].run_task("prepare", a_context(), {})


@pytest.mark.parametrize("how", ["param", "environment"])
def test_a_load_takes_as_long_as_it_is_told(
    dags: dict[str, DAG],
    warehouse: psycopg.Connection[Any],
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    d = dags["temperatures"]
    d.run_task("prepare", a_context(), {})
    storage.put("files/temperatures/1/sf/2010-05-05.csv", b"at,degrees\n2010-05-05T00:00,50.5\n")
    if how == "environment":
        monkeypatch.setenv("SLUICE_EXAMPLE_TASK_SECONDS", "0.5")
    params = {"task_seconds": 0.5} if how == "param" else {}
    began = time.monotonic()
    assert d.run_task("load_sf_2010-05-05", a_context(storage_url=storage.url, params=params), {}) == 1
    assert 0.5 <= time.monotonic() - began < 3


def test_the_hour_of_the_year(dags: dict[str, DAG]) -> None:
    d = dags["temperature_of_the_hour"]
    assert d.test(NOON) == {"look_up": {"seattle": "47.7", "sf": "56.5"}, "warmest": "sf"}
    # 2010 had no 29 February: the run skips instead of failing
    assert d.test(dt.datetime(2028, 2, 29, 12, tzinfo=dt.UTC)) == {}


def test_hello(dags: dict[str, DAG], dag_test: Any) -> None:
    assert dags["hello"].test(params={"name": "sluice"})["tell"] == "hello sluice: 12 letters"
    assert dag_test("temperatures", "hello", NOON)["tell"]["value"] == "hello world: 11 letters"


class TestLedger:
    @pytest.fixture
    def module(self, dags: dict[str, DAG]) -> Any:
        return sys.modules["ledger"]

    def lines(self, ledger: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in read_ledger(ledger)]

    def test_nothing_is_written_unless_asked(
        self, dags: dict[str, DAG], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("SLUICE_LEDGER", raising=False)
        monkeypatch.chdir(tmp_path)
        dags["hello"].test()
        assert list(tmp_path.iterdir()) == []

    def test_a_task_that_raises_writes_fail(self, module: Any, ledger: Path) -> None:
        with pytest.raises(ZeroDivisionError), module.recording(ledger, a_context(attempt=3)):
            _ = 1 / 0
        assert [(x["event"], x["attempt"], x["pid"]) for x in self.lines(ledger)] == [
            ("start", 3, os.getpid()),
            ("fail", 3, os.getpid()),
        ]

    @pytest.mark.filterwarnings(
        "ignore:.*fork:DeprecationWarning"
    )  # from Python 3.12 on, where other tests left threads
    def test_a_killed_process_leaves_a_start_and_frees_the_lock(self, module: Any, ledger: Path) -> None:
        # Given a process that is killed while its task runs
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with module.recording(ledger, a_context()):
                os.write(write, b"x")
                signal.pause()
            os._exit(0)
        os.read(read, 1)
        # When a second execution starts while the first runs, it is an overlap
        with module.recording(ledger, a_context(attempt=2)):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # And when the third starts after the first was killed, it is none
        with module.recording(ledger, a_context(attempt=3)):
            pass
        os.close(read)
        os.close(write)
        events = [(x["event"], x["attempt"]) for x in self.lines(ledger)]
        assert events == [("start", 1), ("start", 2), ("overlap", 2), ("end", 2), ("start", 3), ("end", 3)]
        verdict = judge(read_ledger(ledger), [("1", "t")])
        assert verdict.summary() == "tasks=1 lost=0 killed=1 overlapped=1 repeated=1"

    @pytest.mark.filterwarnings(
        "ignore:.*fork:DeprecationWarning"
    )  # from Python 3.12 on, where other tests left threads
    def test_lines_of_many_processes_never_mix(self, module: Any, ledger: Path) -> None:
        children = []
        for n in range(4):
            child = os.fork()
            if child == 0:
                for i in range(200):
                    with module.recording(ledger, a_context(f"task_{n}_{i}")):
                        pass
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        assert len(self.lines(ledger)) == 4 * 200 * 2
