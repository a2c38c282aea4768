"""Assets: updated by tasks and from outside, and the runs that follow, once."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import pytest
from sqlalchemy import Engine, text

from runner.authoring import DAG, Asset, AuthoringError, task
from runner.authoring.assets import holds
from runner.scheduler.agenda import agenda
from runner.settings import UsageError
from runner.state import assets, bundles
from tests.state.conftest import World

A, B, C = Asset("s3://lake/a"), Asset("s3://lake/b"), Asset("c")


@task(outlets=[A])
def make_a() -> None: ...


@task(outlets=[A, B])
def make_both() -> None: ...


@task
def use() -> None: ...


def consumer(dag_id: str, schedule: Any) -> DAG:
    with DAG(dag_id, schedule=schedule) as d:
        use()
    return d


def push(world: World, *dags: DAG, version: str = "v1") -> None:
    with world.engine.begin() as c:
        specs = [d.spec() for d in dags]
        bundles.register_and_activate(c, version=version, name="b", url="", size=0, specs=specs, who="test")


def create(world: World) -> int:
    n = 0
    while world.do(lambda c: agenda(c).assets):
        n += world.do(assets.create_runs)
    return n


def runs(world: World, dag_id: str) -> list[Any]:
    with world.engine.begin() as c:
        return list(c.execute(text("SELECT * FROM dag_run WHERE dag_id = :d ORDER BY id"), {"d": dag_id}))


def update(world: World, *names: Asset) -> None:
    for name in names:
        world.do(lambda c, name=name: assets.update(c, str(name), who="test"))


@pytest.fixture
def producer(world: World) -> World:
    with DAG("makes_a") as one:
        make_a()
    with DAG("makes_both") as two:
        make_both()
    every, some = consumer("all", [A, B]), consumer("any", A | B)
    push(world, one, two, every, some, consumer("mixed", (A & B) | C), consumer("by_hand", None))
    world.node()
    return world


def test_a_task_that_succeeds_sets_the_dags_that_wait_going(producer: World) -> None:
    # When a task that updates one asset has ended
    run = producer.run("makes_a")
    (claim,) = producer.take()
    assert producer.end(claim)
    assert producer.run_state(run) == "success"
    create(producer)
    # Then only the DAG that waits for any of them runs, and knows why
    (made,) = runs(producer, "any")
    assert (made.run_type, made.state) == ("asset", "running")
    assert [(e["asset"], e["dag_id"], e["task_id"], e["run_id"]) for e in made.triggers] == [
        ("s3://lake/a", "makes_a", "make_a", run)
    ]
    assert runs(producer, "all") == runs(producer, "mixed") == runs(producer, "by_hand") == []
    # And its task's context lists the event
    (claim,) = producer.take()
    assert claim.run_type == "asset"
    assert [e["asset"] for e in claim.triggers] == ["s3://lake/a"]


def test_all_of_a_list_since_the_last_run(producer: World) -> None:
    update(producer, A, A)
    create(producer)
    assert runs(producer, "all") == []
    update(producer, B)
    create(producer)
    (first,) = runs(producer, "all")
    assert [e["asset"] for e in first.triggers] == [str(A), str(A), str(B)]
    assert first.interval_start < first.interval_end == first.logical_date
    update(producer, B)  # what the first run has used does not count again
    create(producer)
    assert len(runs(producer, "all")) == 1
    update(producer, A)
    create(producer)
    assert len(runs(producer, "all")) == len(runs(producer, "mixed")) == 2


def test_a_failed_attempt_and_one_that_is_retried_update_nothing(producer: World) -> None:
    producer.run("makes_a")
    (claim,) = producer.take()
    producer.end(claim, "failed", error="x")
    assert producer.one("SELECT count(*) FROM asset_event") == 0


def test_tasks_without_outlets_cost_no_statement(producer: World) -> None:
    from sqlalchemy import event

    seen: list[str] = []
    producer.run("by_hand")
    (claim,) = producer.take()
    event.listen(producer.engine, "before_cursor_execute", lambda _c, _cur, sql, *_: seen.append(sql))
    producer.end(claim)
    assert seen
    assert not [sql for sql in seen if "asset" in sql]


def test_a_mapped_task_updates_once(world: World) -> None:
    @task(outlets=[C])
    def load(n: int) -> None: ...

    with DAG("mapped") as d:
        load.map(n=[1, 2, 3])
    push(world, d)
    world.node()
    world.run("mapped")
    for claim in world.take():
        assert world.one("SELECT count(*) FROM asset_event") == 0
        world.end(claim)
    assert world.one("SELECT count(*) FROM asset_event") == 1


def test_schedulers_that_look_at_once_make_one_run(producer: World, engine: Engine) -> None:
    update(producer, A, B, C)
    barrier = threading.Barrier(4)

    def look() -> None:
        barrier.wait()
        for _ in range(5):
            with engine.begin() as c:
                assets.create_runs(c)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    create(producer)
    assert [len(runs(producer, d)) for d in ("all", "any", "mixed")] == [1, 1, 1]


def test_paused_it_waits_for_nothing(producer: World) -> None:
    producer.do(lambda c: c.execute(text("UPDATE dag SET paused = true WHERE dag_id = 'any'")))
    update(producer, A)
    create(producer)
    producer.do(lambda c: c.execute(text("UPDATE dag SET paused = false")))
    create(producer)
    assert runs(producer, "any") == []


def test_a_push_changes_what_is_waited_for(producer: World) -> None:
    update(producer, A)
    push(producer, consumer("all", [A, C]), consumer("any", None), version="v2")
    create(producer)
    assert producer.one("SELECT assets FROM dag WHERE dag_id = 'any'") == []
    update(producer, C)
    create(producer)
    assert len(runs(producer, "all")) == 1
    assert runs(producer, "any") == []
    assert producer.one("SELECT count(*) FROM asset_pending WHERE dag_id IN ('all', 'any')") == 0


def test_a_second_run_of_the_same_instant_gets_the_next(producer: World) -> None:
    update(producer, C)
    at = producer.one("SELECT at FROM asset_event")
    producer.run("mixed", date=at)
    create(producer)
    assert runs(producer, "mixed")[1].logical_date == at + dt.timedelta(microseconds=1)


def test_an_asset_nobody_knows_is_refused(producer: World) -> None:
    with pytest.raises(UsageError, match="no DAG uses an asset 'typo'"):
        update(producer, Asset("typo"))
    rows = {r.asset: r for r in producer.do(assets.known)}
    assert rows[str(A)].made_by == ["makes_a", "makes_both"]
    assert rows[str(C)].used_by == ["mixed"]


def test_conditions() -> None:
    both_or_c = ((A & B) | C).to_json()
    assert both_or_c == {
        "any": [{"all": [{"asset": "s3://lake/a"}, {"asset": "s3://lake/b"}]}, {"asset": "c"}],
    }
    assert holds(both_or_c, {"c"}) and holds(both_or_c, {str(A), str(B)}) and not holds(both_or_c, {str(A)})
    for wrong in ("", "a b", 3):
        with pytest.raises(AuthoringError, match="name of an asset"):
            Asset(wrong)  # type: ignore[arg-type]
    with pytest.raises(AuthoringError, match="assets with assets only"):
        DAG("d", schedule=[A, "@daily"])  # type: ignore[list-item]
