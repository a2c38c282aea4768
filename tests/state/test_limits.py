"""Pools, and how many tasks of a DAG or instances of a task may be at work."""

from __future__ import annotations

import datetime as dt
import threading
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from runner.state import transitions
from runner.state.transitions.admit import Candidate, Used, choose

from .conftest import DATE, World, task


def pool(world: World, name: str, slots: int) -> None:
    world.do(lambda c: c.execute(text("INSERT INTO pool (name, slots) VALUES (:n, :s)"), {"n": name, "s": slots}))


def admitted(world: World) -> list[str]:
    world.do(transitions.admit)
    with world.engine.begin() as c:
        rows = c.execute(text("SELECT task_id FROM task_instance WHERE state = 'ready' AND admitted ORDER BY task_id"))
        return [r.task_id for r in rows]


def runs(world: World, n: int, dag_id: str = "d") -> list[int]:
    return [world.run(dag_id, DATE + dt.timedelta(days=i)) for i in range(n)]


# --- choosing, pure -------------------------------------------------------------------------------------------

names = st.sampled_from(["x", "y"])
counts = st.integers(0, 4)
candidates = st.lists(
    st.builds(
        Candidate,
        id=st.integers(1, 10**6),
        dag_id=names,
        task_id=names,
        priority=st.integers(-3, 3),
        pool=st.one_of(st.none(), names),
        pool_slots=st.integers(1, 4),
        max_active=st.none(),
        max_active_tasks=st.none(),
        pool_size=st.none(),
    ),
    unique_by=lambda c: c.id,
    max_size=15,
)
limits = st.dictionaries(st.tuples(st.sampled_from(["dag", "task", "pool"]), names), st.integers(0, 4))


@given(candidates, limits, st.dictionaries(names, counts), st.dictionaries(st.tuples(names, names), counts), st.data())
@settings(max_examples=300, deadline=None)
def test_what_is_chosen_fits_and_what_is_left_does_not(
    found: list[Candidate], limits: dict[Any, int], dags: dict[str, int], tasks: Any, data: st.DataObject
) -> None:
    # Given some at work, and candidates that share their limits
    used = Used(dags, tasks, data.draw(st.dictionaries(names, counts)))
    found = [
        c._replace(
            max_active_tasks=limits.get(("dag", c.dag_id)),
            max_active=limits.get(("task", c.task_id)),
            pool_size=limits.get(("pool", c.pool)) if c.pool else None,
        )
        for c in found
    ]
    # When some are chosen
    chosen = choose(found, used)
    # Then they are some of them, in their order
    assert chosen == [c.id for c in found if c.id in chosen]
    # And walking through them, each fits into what was left, and each that is left out did not
    by_dag, by_task, by_pool = Counter(used.dags), Counter(used.tasks), Counter(used.pools)
    for c in found:
        fits = (
            (c.max_active_tasks is None or by_dag[c.dag_id] + 1 <= c.max_active_tasks)
            and (c.max_active is None or by_task[c.dag_id, c.task_id] + 1 <= c.max_active)
            and (
                c.pool is None
                or c.pool_size is None
                or by_pool[c.pool] + c.pool_slots <= c.pool_size
                or (c.pool_size > 0 and by_pool[c.pool] == 0)  # larger than the pool: alone
            )
        )
        assert (c.id in chosen) == fits
        if fits:
            by_dag[c.dag_id] += 1
            by_task[c.dag_id, c.task_id] += 1
            by_pool[c.pool] += c.pool_slots


# --- in the database ------------------------------------------------------------------------------------------


def test_a_pool_counts_slots_of_all_dags_and_a_task_that_does_not_fit_lets_others_past(world: World) -> None:
    pool(world, "api", 3)
    world.node(slots=10)
    world.dag(task("big", pool="api", pool_slots=3, priority=5), task("small", pool="api"), dag_id="one")
    world.dag(task("two", pool="api", pool_slots=2, priority=9), task("free"), dag_id="other")
    world.run("one")
    world.run("other")
    # The highest first; the next of three slots does not fit, the one after it does; what has no limit is not asked
    assert admitted(world) == ["free", "small", "two"]
    claims = {c.task_id: c for c in world.take()}
    assert set(claims) == {"free", "small", "two"}
    # When slots become free, then whoever ends a task admits what fits now
    world.end(claims["two"])
    assert world.take() == []
    world.end(claims["small"])
    (big,) = world.take()
    assert big.task_id == "big"


def test_more_slots_than_the_pool_has_run_alone_and_no_slots_stop_it(world: World) -> None:
    pool(world, "small", 2)
    pool(world, "closed", 0)
    world.dag(
        task("big", pool="small", pool_slots=5),
        task("late", pool="small"),
        task("never", pool="closed"),
        task("any", pool="unknown"),
    )
    world.node()
    world.run()
    assert admitted(world) == ["any", "big"]
    claims = {c.task_id: c for c in world.take()}
    world.end(claims["big"])
    assert admitted(world) == ["late"]


def test_instances_of_a_task_and_tasks_of_a_dag_are_counted_over_all_runs(world: World) -> None:
    world.dag(task("one", max_active=1), task("many"), max_active_tasks=3)
    world.node(slots=10)
    runs(world, 3)
    assert admitted(world) == ["many", "many", "one"]
    (one,) = [c for c in world.take() if c.task_id == "one"]
    assert admitted(world) == []
    # A try that failed and waits for its delay holds no place, and asks again
    world.end(one, "interrupted")
    assert admitted(world) == ["one"]


def test_a_retry_gives_its_place_away_and_gets_one_again(world: World) -> None:
    world.dag(task("a", max_active=1, retries=1, retry_delay_seconds=60.0))
    world.node()
    first, second = runs(world, 2)
    world.do(transitions.admit)
    (claim,) = world.take()
    world.end(claim, "failed")
    (other,) = world.take()
    assert other.run_id == second
    world.do(lambda c: c.execute(text("UPDATE task_instance SET available_at = now() WHERE state = 'up_for_retry'")))
    assert world.do(transitions.wake_retries) == 1
    assert admitted(world) == []
    world.end(other)
    (again,) = world.take()
    assert (again.run_id, again.try_number) == (first, 2)


def test_items_are_counted_each_and_the_task_they_belong_to_is_not(world: World) -> None:
    world.dag(task("m", kind="mapped", map_over=({"arg": "x", "length": 5},), max_active=2))
    world.node(slots=10)
    run = world.run()
    world.do(transitions.admit)
    for expected in ([0, 1], [2, 3], [4]):
        claims = world.take()
        assert [c.map_index for c in claims] == expected
        for claim in claims:
            world.end(claim)
    assert world.run_state(run) == "success"


def test_what_is_blocked_blocks_nobody_else(world: World) -> None:
    # Given hundreds of tasks of high priority that wait for a pool
    pool(world, "full", 1)
    world.dag(task("wide", kind="mapped", map_over=({"arg": "x", "length": 500},), pool="full", priority=9), dag_id="a")
    world.dag(task("b", max_active=1), dag_id="b")
    world.node(slots=10)
    world.run("a")
    world.run("b")
    # Then one of low priority and another limit does not wait behind them
    assert admitted(world) == ["b", "wide"]


def test_an_admission_counts_what_another_one_is_just_admitting(world: World) -> None:
    pool(world, "p", 1)
    world.dag(task("low", pool="p"), dag_id="low")
    world.dag(task("high", pool="p", priority=9), dag_id="high")
    world.run("low")
    # Given an admission that is not committed, and a task that is ready meanwhile and goes before
    other = world.engine.connect()
    begun = other.begin()
    assert transitions.admit(other) == 1
    world.run("high")
    # When another scheduler admits
    counts: list[int] = []
    second = threading.Thread(target=lambda: counts.append(world.do(transitions.admit)))
    second.start()
    second.join(0.5)
    begun.commit()
    other.close()
    second.join(60)
    # Then it has waited, and the pool is full
    assert counts == [0]
    assert admitted(world) == ["low"]


def test_a_free_slot_takes_only_what_is_admitted(world: World) -> None:
    world.dag(task("one", max_active=1), task("free"))
    world.node(slots=10)
    runs(world, 2)
    world.do(transitions.admit)
    claims = world.do(lambda c: transitions.take(c, node_id="n1", queues=["default"], n=9, lease_seconds=300))
    assert [c.task_id for c in claims] == ["free", "one", "free"]
    # When it ends the one, then the same commit admits and takes the other
    (one,) = [c for c in claims if c.task_id == "one"]
    assert [c.task_id for c in world.finish(one, slots=1).claims] == ["one"]
