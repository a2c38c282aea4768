"""What a worker's processes do for a task: limits, isolation, recycling, orders, values, callbacks; one worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from runner.localcloud.engines import Postgres
from runner.state import transitions
from runner.state.db import connect

from .conftest import Fleet

PIPELINE = """
    import json, os, time
    from runner.authoring import DAG, Fail, TaskGroup, get_current_context, task

    KEPT = []

    def write(file, **values):
        fd = os.open(os.path.join(os.environ["OUT"], file), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, (json.dumps({"pid": os.getpid(), **values}) + "\\n").encode())
        os.close(fd)

    @task(memory_mb=64)
    def greedy():
        bytearray(500 << 20)

    @task(memory_mb=64)
    def modest():
        return len(bytearray(20 << 20))

    with DAG("memory"):
        greedy()
        modest()

    @task(cpu_seconds=1)
    def burn():
        while True:
            pass

    with DAG("cpu"):
        burn()

    @task
    def pid(name, after=None):
        write(name)

    with DAG("isolation"):
        again = pid.override(isolation="fresh")
        pid("isolation", again("isolation", again("isolation", pid("isolation"))))

    @task
    def grow(after=None):
        KEPT.append(b"x" * (400 << 20))
        write("grown")

    with DAG("size"):
        pid.override(task_id="then")("grown", grow())

    with DAG("count"):
        before = None
        for i in range(102):
            before = pid("count", before)

    @task
    def tidy():
        write("running")
        try:
            time.sleep(300)
        finally:
            write("tidied")

    @task
    def after():
        write("after")

    with DAG("order"):
        tidy() >> after()

    @task
    def large():
        return ["x" * 1000] * 200

    @task
    def length(value):
        write("length", n=len(value))
        return len(value)

    @task
    def too_large():
        return "x" * 2_000_000

    with DAG("values"):
        value = large()
        length(value)
        length.override(task_id="item").map(value=value)
        too_large.override(retries=3)()

    def called(name):
        def call(context, error):
            write("called", name=name, task=context.task_id, attempt=context.attempt, error=error)
        return call

    options = {f"on_{name}": called(name) for name in ("success", "failure", "retry")}

    @task(retries=1, retry_delay=__import__("datetime").timedelta(0), **options)
    def flaky():
        if get_current_context().try_number == 1:
            raise ValueError("once")

    @task(**options)
    def broken():
        raise ValueError("always")

    @task
    def run_over(context):
        write("called", name=context.task_id, task=context.dag_id, attempt=context.attempt, error=None)

    with DAG("callbacks", on_success=run_over, on_failure=run_over):
        flaky()
        broken()

    @task(retries=3, no_retry_on=KeyError)
    def hopeless():
        {}["gone"]

    @task(retries=3)
    def given_up():
        raise Fail("no such customer")

    with DAG("no_retry"):
        hopeless()
        given_up()
"""


@pytest.fixture(scope="module")
def fleet(
    postgres: Postgres, _template: str, _valkey: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    engine = connect(postgres.url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(text('CREATE DATABASE "execution" TEMPLATE "template"'))
    engine.dispose()
    engine = connect(postgres.url_of("execution"))
    fleet = Fleet(engine, postgres.url_of("execution"), _valkey, tmp_path_factory.mktemp("fleet"))
    fleet.push(PIPELINE)
    fleet.worker(slots=2, xcom_max_bytes="1000000", recycle_mb="300")
    fleet.ready()
    yield fleet
    fleet.close()
    engine.dispose()


def over(fleet: Fleet, run: int) -> str:
    fleet.wait(lambda: fleet.state(run) != "running", 60, dispatching=True)
    return fleet.state(run)


def pids(fleet: Fleet, name: str) -> list[int]:
    return [line["pid"] for line in fleet.out(name)]


def test_more_memory_than_its_limit_fails_a_task_with_a_clear_line(fleet: Fleet) -> None:
    run = fleet.run("memory")
    assert over(fleet, run) == "failed"
    assert fleet.task(run, "greedy", "error") == "MemoryError: it needs more memory than its limit, or than there is"
    assert fleet.task(run, "modest") == "success"


def test_more_cpu_time_than_its_limit_fails_a_task(fleet: Fleet) -> None:
    run = fleet.run("cpu")
    assert over(fleet, run) == "failed"
    assert fleet.task(run, "burn", "error") == "used more than its limit of 1 CPU seconds"
    assert fleet.task(run, "burn", "interruptions") == 0


def test_a_task_may_ask_for_a_process_of_its_own(fleet: Fleet) -> None:
    assert over(fleet, fleet.run("isolation")) == "success"
    warm, fresh, other, later = pids(fleet, "isolation")
    assert len({warm, fresh, other}) == 3
    assert later not in (fresh, other)


def test_a_process_that_has_grown_is_not_used_again(fleet: Fleet) -> None:
    assert over(fleet, fleet.run("size")) == "success"
    grown, then = pids(fleet, "grown")
    assert grown != then


def test_a_process_is_used_for_a_hundred_tasks_at_most(fleet: Fleet) -> None:
    assert over(fleet, fleet.run("count")) == "success"
    found = pids(fleet, "count")
    assert len(found) == 102
    assert 2 <= len(set(found)) <= 4
    assert max(found.count(pid) for pid in set(found)) <= 100


def test_a_task_that_is_killed_may_tidy_up_and_ends_soon(fleet: Fleet) -> None:
    run = fleet.run("order")
    fleet.wait(lambda: fleet.out("running"), 60, dispatching=True)
    with fleet.engine.begin() as c:
        assert transitions.mark(c, run, ["tidy"], "failed", by="me", only_unfinished=True) == 1
    assert over(fleet, run) == "failed"
    assert len(fleet.out("tidied")) == 1
    assert fleet.task(run, "tidy", "error") == "killed by me"
    assert fleet.task(run, "tidy", "interruptions") == 0
    assert fleet.task(run, "after") == "upstream_failed"


def test_a_large_value_goes_through_storage_and_a_larger_one_fails_clearly(fleet: Fleet) -> None:
    run = fleet.run("values")
    assert over(fleet, run) == "failed"
    assert fleet.task(run, "too_large", "error").startswith(
        "returned 2,000,002 bytes of JSON; at most 1,000,000 may go"
    )
    assert fleet.task(run, "too_large", "attempt") == 1, "once more would not help"
    where = fleet.one("SELECT url FROM xcom WHERE run_id = :r AND task_id = 'large' AND value IS NULL", r=run)
    assert (fleet.directory / "storage" / where).is_file()
    lengths = [line["n"] for line in fleet.out("length")]
    assert sorted(lengths) == [200, *[1000] * 200]


def test_callbacks_are_called_for_how_it_ended(fleet: Fleet) -> None:
    run = fleet.run("callbacks")
    assert over(fleet, run) == "failed"
    fleet.wait(lambda: fleet.task(run, "@on_failure") in ("success", "failed"), 60, dispatching=True)
    assert fleet.task(run, "@on_failure", "error") is None
    calls = {(c["name"], c["task"], c["attempt"], c["error"]) for c in fleet.out("called")}
    assert calls == {
        ("retry", "flaky", 1, "ValueError: once"),
        ("success", "flaky", 2, None),
        ("failure", "broken", 1, "ValueError: always"),
        ("@on_failure", "callbacks", 1, None),
    }


def test_what_is_hopeless_is_not_tried_again(fleet: Fleet) -> None:
    run = fleet.run("no_retry")
    assert over(fleet, run) == "failed"
    assert fleet.task(run, "hopeless", "attempt") == fleet.task(run, "given_up", "attempt") == 1
    assert fleet.task(run, "hopeless", "error") == "KeyError: 'gone'"
    assert fleet.task(run, "given_up", "error") == "Fail: no such customer"
