"""What people and deadlines change: clear, mark, kill, end; and every legal transition, made once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from runner.settings import RefusedError, UsageError
from runner.state import nodes, transitions
from runner.state.transitions import LEGAL, Claim

from .conftest import World, task

CHAIN = (task("a"), task("b", "a"), task("c", "b"))


def literal(task_id: str, length: int, *upstream: str, **options: Any) -> Any:
    return task(task_id, *upstream, kind="mapped", map_over=({"arg": "x", "length": length},), **options)


def over(task_id: str, source: str, *upstream: str, **options: Any) -> Any:
    return task(task_id, source, *upstream, kind="mapped", map_over=({"arg": "x", "task": source},), **options)


def complete(world: World, fail: Callable[[Claim], bool] = lambda _: False, value: str | None = None) -> list[str]:
    """Run everything that is due, one after another; returns what ran, in order."""
    ran = []
    for _ in range(200):
        world.do(transitions.admit)
        claims = world.take()
        if not claims:
            return ran
        for claim in claims:
            ran.append(claim.task_id if claim.map_index < 0 else f"{claim.task_id}[{claim.map_index}]")
            world.end(claim, "failed" if fail(claim) else "success", value=value)
    raise AssertionError("it does not end")


def clear(world: World, run: int, *tasks: str, **how: Any) -> int:
    return int(world.do(lambda c: transitions.clear(c, run, list(tasks) or None, by="me", **how)))


def mark(world: World, run: int, state: Any, *tasks: str, **how: Any) -> int:
    return int(world.do(lambda c: transitions.mark(c, run, list(tasks) or None, state, by="me", **how)))


def kill(world: World, run: int, *tasks: str) -> int:
    return mark(world, run, "failed", *tasks, only_unfinished=True)


def end_run(world: World, run: int) -> int:
    return int(world.do(lambda c: transitions.end_run(c, run, why="enough")))


def ended(world: World) -> frozenset[Any]:
    """What a heartbeat of the node tells it to end."""
    orders = world.do(lambda c: nodes.heartbeat(c, "n1"))
    return frozenset(orders.ended)


def instances(world: World, run: int, column: str = "state") -> dict[str, Any]:
    with world.engine.begin() as c:
        rows = c.execute(
            text(f"SELECT task_id, map_index, {column} AS v FROM task_instance WHERE run_id = :r"), {"r": run}
        )
        return {r.task_id if r.map_index < 0 else f"{r.task_id}[{r.map_index}]": r.v for r in rows}


# --- clear ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "again"),
    [
        ({}, ["b", "c"]),
        ({"downstream": False}, ["b"]),
        ({"upstream": True}, ["a", "b", "c"]),
        ({"upstream": True, "downstream": False}, ["a", "b"]),
    ],
)
def test_a_cleared_task_runs_again_with_what_is_asked_for(world: World, how: dict[str, bool], again: list[str]) -> None:
    world.dag(*CHAIN)
    world.node()
    run = world.run()
    complete(world)
    assert clear(world, run, "b", **how) == len(again)
    assert world.run_state(run) == "running"
    assert complete(world) == again
    assert world.run_state(run) == "success"


def test_a_whole_run_runs_again_and_forgets_its_values(world: World) -> None:
    world.dag(task("a"), task("b", "a", inputs=("a",)))
    world.node()
    run = world.run()
    complete(world, value="1")
    assert clear(world, run) == 2
    assert world.one("SELECT count(*) FROM xcom WHERE run_id = :r", r=run) == 0
    assert complete(world) == ["a", "b"]


def test_only_what_failed_runs_again(world: World) -> None:
    world.dag(task("a"), task("bad"), task("c", "a", "bad"), task("d", "a"))
    world.node()
    run = world.run()
    complete(world, fail=lambda c: c.task_id == "bad")
    assert world.run_state(run) == "failed"
    clear(world, run, only_failed=True)
    assert complete(world) == ["bad", "c"]
    assert world.run_state(run) == "success"


def test_a_cleared_task_has_all_its_tries_again(world: World) -> None:
    world.dag(task("a", retries=1, retry_delay_seconds=0))
    world.node()
    run = world.run()
    assert complete(world, fail=lambda _: True) == ["a", "a"]
    clear(world, run)
    assert complete(world, fail=lambda _: True) == ["a", "a"]


def test_one_item_runs_again_and_the_list_stays(world: World) -> None:
    world.dag(task("list"), over("load", "list"), task("report", "load"))
    world.node()
    run = world.run()
    complete(world, value="[1, 2, 3]")
    clear(world, run, "load[2]")
    assert world.states(run)["report"] == "waiting"
    assert complete(world) == ["load[2]", "report"]
    assert world.run_state(run) == "success"


def test_what_is_mapped_anew_gets_a_new_list(world: World) -> None:
    world.dag(task("list"), over("load", "list"))
    world.node()
    run = world.run()
    complete(world, value="[1, 2, 3]")
    clear(world, run, "list")
    assert complete(world, value="[1]") == ["list", "load[0]"]
    assert set(instances(world, run)) == {"list", "load", "load[0]"}


def test_items_that_run_refuse_a_new_list(world: World) -> None:
    world.dag(task("list"), over("load", "list"))
    world.node()
    run = world.run()
    world.end(*world.take(), value="[1, 2]")
    world.take()
    with pytest.raises(RefusedError, match="2 items of 'load' are running"):
        clear(world, run, "list")


def test_only_failed_of_a_mapped_task_keeps_the_items_that_succeeded(world: World) -> None:
    world.dag(literal("load", 3))
    world.node()
    run = world.run()
    complete(world, fail=lambda c: c.map_index == 1)
    assert instances(world, run)["load"] == "failed"
    clear(world, run, "load", only_failed=True)
    assert complete(world) == ["load[1]"]
    assert world.run_state(run) == "success"


def test_a_running_task_that_is_cleared_is_ended_and_started_again(world: World) -> None:
    world.dag(*CHAIN)
    world.node()
    run = world.run()
    (claim,) = world.take()
    clear(world, run, "a")
    assert ended(world) == {claim.token}
    assert world.states(run)["a"] == "running"
    # When it ends, however it ends, then it counts for nothing
    assert world.end(claim, "success", value="1", skip=("b",))
    assert world.states(run) == {"a": "ready", "b": "waiting", "c": "waiting"}
    assert world.one("SELECT count(*) FROM xcom") == 0
    assert complete(world) == ["a", "b", "c"]


def test_a_running_item_that_is_cleared_is_started_again(world: World) -> None:
    world.dag(literal("load", 2), task("report", "load"))
    world.node()
    run = world.run()
    first, _ = world.take()
    clear(world, run, "load[0]")
    world.end(first, "interrupted")
    assert instances(world, run)["load[0]"] == "ready"
    (again,) = world.take()
    assert (again.map_index, again.try_number, again.interruptions) == (0, 1, 0)


def test_setups_and_teardowns_around_run_again(world: World) -> None:
    world.dag(
        task("make", setup=True),
        task("work", "make"),
        task("other"),
        task("remove", "work", "make", teardown=True, trigger_rule="teardown"),
    )
    world.node()
    run = world.run()
    complete(world)
    clear(world, run, "work", downstream=False)
    assert complete(world) == ["make", "work", "remove"]


def test_a_teardown_runs_if_its_setup_did_and_decides_nothing(world: World) -> None:
    world.dag(
        task("make", setup=True),
        task("work", "make"),
        task("remove", "work", "make", teardown=True, trigger_rule="teardown"),
    )
    world.node()
    run = world.run()
    assert complete(world, fail=lambda c: c.task_id == "work") == ["make", "work", "remove"]
    assert world.run_state(run) == "failed"
    clear(world, run)
    complete(world, fail=lambda c: c.task_id == "make")
    assert world.states(run) == {"make": "failed", "work": "upstream_failed", "remove": "skipped"}
    clear(world, run)
    complete(world, fail=lambda c: c.task_id == "remove")
    assert world.run_state(run) == "success"


def test_what_cannot_be_cleared_says_why(world: World) -> None:
    world.dag(literal("load", 2))
    run = world.run()
    with pytest.raises(UsageError, match="there is no run 4711"):
        clear(world, 4711)
    with pytest.raises(UsageError, match="has no task 'nope'"):
        clear(world, run, "nope")
    with pytest.raises(UsageError, match=r"has no task 'load\[x\]'"):
        clear(world, run, "load[x]")
    with pytest.raises(UsageError, match="task 'load' has no item 7"):
        clear(world, run, "load[7]")


# --- mark and kill --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["success", "failed", "skipped"])
def test_what_waits_becomes_at_once_what_it_is_marked(world: World, state: str) -> None:
    world.dag(*CHAIN)
    world.node()
    run = world.run()
    assert mark(world, run, state, "a") == 1
    follows = {"success": "ready", "failed": "upstream_failed", "skipped": "skipped"}[state]
    assert (world.states(run)["a"], world.states(run)["b"]) == (state, follows)


@pytest.mark.parametrize("state", ["success", "failed", "skipped"])
def test_what_runs_is_ended_first(world: World, state: str) -> None:
    world.dag(*CHAIN)
    world.node()
    run = world.run()
    (claim,) = world.take()
    mark(world, run, state, "a")
    assert world.states(run)["a"] == "running"
    assert ended(world) == {claim.token}
    world.end(claim, "interrupted", error="its process was told to end")
    assert world.states(run)["a"] == state
    assert world.one("SELECT error FROM task_instance WHERE task_id = 'a'") == f"marked {state} by me"


def test_a_kill_leaves_alone_what_is_over(world: World) -> None:
    world.dag(task("a"), task("b", retries=5), task("c", "b"))
    world.node(slots=2)
    run = world.run()
    a, b = world.take()
    world.end(a)
    kill(world, run)
    world.end(b, "failed")
    assert world.states(run) == {"a": "success", "b": "failed", "c": "failed"}
    assert world.one("SELECT error FROM task_instance WHERE task_id = 'b'") == "killed by me"


def test_a_mapped_task_that_is_marked_is_over_with_its_last_running_item(world: World) -> None:
    world.dag(literal("load", 2), task("report", "load"))
    world.node(slots=1)
    run = world.run()
    (claim,) = world.take()
    mark(world, run, "success", "load")
    # Then what follows does not start beside an item that still runs
    assert instances(world, run) == {
        "load": "expanded",
        "load[0]": "running",
        "load[1]": "success",
        "report": "waiting",
    }
    world.end(claim, "interrupted")
    assert instances(world, run) == {"load": "success", "load[0]": "success", "load[1]": "success", "report": "ready"}


def test_a_kill_does_not_miss_a_task_that_is_just_being_taken(world: World) -> None:
    # Given a slot that has taken a task and not committed yet
    world.dag(task("a"))
    world.node()
    run = world.run()
    took = world.engine.connect()
    begun = took.begin()
    assert transitions.take(took, node_id="n1", queues=["default"], n=1, lease_seconds=300)
    # When a person kills it meanwhile
    counts: list[int] = []
    killer = threading.Thread(target=lambda: counts.append(kill(world, run, "a")))
    killer.start()
    killer.join(0.5)
    begun.commit()
    took.close()
    killer.join(60)
    # Then it is killed
    assert counts == [1]
    assert len(ended(world)) == 1


# --- the end of a run -----------------------------------------------------------------------------------------


def test_a_run_that_is_ended_fails_and_tidies_up(world: World) -> None:
    world.dag(
        task("make", setup=True),
        task("work", "make"),
        task("more", "work"),
        task("remove", "more", "make", teardown=True, trigger_rule="teardown"),
    )
    world.node()
    run = world.run()
    world.end(*world.take())
    (claim,) = world.take()
    assert end_run(world, run) == 2
    assert ended(world) == {claim.token}
    world.end(claim, "interrupted")
    assert world.states(run) == {"make": "success", "work": "failed", "more": "failed", "remove": "ready"}
    assert complete(world) == ["remove"]
    assert world.run_state(run) == "failed"


def test_what_a_run_that_was_ended_has_not_done_is_done_when_its_failures_are_cleared(world: World) -> None:
    world.dag(*CHAIN)
    world.node()
    run = world.run()
    (claim,) = world.take()
    end_run(world, run)
    world.end(claim, "interrupted")
    assert set(world.states(run).values()) == {"failed"}
    clear(world, run, only_failed=True)
    assert complete(world) == ["a", "b", "c"]
    assert world.run_state(run) == "success"


def test_a_run_ends_with_the_last_item_that_is_killed(world: World) -> None:
    world.dag(literal("load", 2), literal("wide", 2))
    world.node(slots=1)
    run = world.run()
    (claim,) = world.take()
    end_run(world, run)
    assert world.run_state(run) == "running"
    world.end(claim, "interrupted")
    assert world.run_state(run) == "failed"


def test_a_run_longer_than_its_timeout_is_ended_and_starts_anew_when_cleared(world: World) -> None:
    world.dag(task("a"), run_timeout_seconds=3600.0)
    world.node()
    run = world.run()
    assert world.do(transitions.time_out_runs) == 0
    world.do(lambda c: c.execute(text("UPDATE dag_run SET deadline_at = now()")))
    assert world.do(transitions.time_out_runs) == 1
    assert world.run_state(run) == "failed"
    assert world.one("SELECT error FROM task_instance") == "the run exceeded its timeout"
    # When it is cleared, then it has its whole time again
    clear(world, run)
    assert world.do(transitions.time_out_runs) == 0
    assert world.one("SELECT deadline_at > now() + interval '59 minutes' FROM dag_run")


def test_a_run_that_had_ended_in_time_is_not_late_when_it_is_cleared(world: World) -> None:
    world.dag(task("a"), run_timeout_seconds=3600.0)
    world.node()
    run = world.run()
    complete(world)
    world.do(lambda c: c.execute(text("UPDATE dag_run SET deadline_at = now() - interval '1 day'")))
    clear(world, run)
    assert world.do(transitions.time_out_runs) == 0
    assert world.states(run) == {"a": "ready"}


# --- the table ------------------------------------------------------------------------------------------------

BY_HAND = ("success", "failed", "skipped", "clear")


def brought_into(world: World, state: str, dag_id: str) -> tuple[int, list[Claim]]:
    """A run with a task `t` in this state, and what runs of it."""
    claims: list[Claim] = []
    if state == "deferred":
        world.dag(task("t", kind="sensor"), dag_id=dag_id)
        return world.run(dag_id), claims
    if state == "expanded":
        world.dag(task("a"), over("t", "a"), dag_id=dag_id)
        run = world.run(dag_id)
        world.end(*world.take(), value="[1]")
        return run, claims
    if state in ("waiting", "upstream_failed"):
        world.dag(task("a"), task("t", "a"), dag_id=dag_id)
        run = world.run(dag_id)
        if state == "upstream_failed":
            world.end(*world.take(), "failed")
        return run, claims
    world.dag(task("t", retries=1, retry_delay_seconds=60.0), dag_id=dag_id)
    run = world.run(dag_id)
    if state == "queued":
        world.dispatch()
    elif state != "ready":
        claims = world.take()
    if state == "up_for_retry":
        world.end(*claims, "failed")
    elif state in ("success", "failed", "skipped"):
        world.end(*claims, state, retry=False)
    return run, claims


def note(world: World, run: int) -> None:
    """The state that an instance begins with has no event of its own: write one down."""
    statement = text("""
        INSERT INTO event (kind, subject, state) SELECT 'task', id::text, state FROM task_instance t
        WHERE run_id = :r AND NOT EXISTS (SELECT 1 FROM event e WHERE e.subject = t.id::text AND e.kind = 'task')""")
    world.do(lambda c: c.execute(statement, {"r": run}))


def ordinary(world: World) -> None:
    """Every transition that nobody asks for."""
    world.dag(task("a"), task("s", "a", kind="sensor"), over("m", "a"), task("f", "a"), task("g", "f"), task("h", "f"))
    note(world, world.run())
    (claim,) = world.take()  # ready → queued → running
    world.end(claim, "interrupted")
    (message,) = world.dispatch()
    world.do(lambda c: transitions.release(c, message.task_instance, message.attempt))
    (claim,) = world.do(lambda c: transitions.take(c, node_id="n1", queues=["default"], n=1, lease_seconds=9))
    world.end(claim, "deferred", delay_seconds=60.0)
    world.do(lambda c: c.execute(text("UPDATE task_instance SET available_at = now() WHERE task_id = 'a'")))
    world.do(transitions.wake_retries)
    world.end(*world.take(), value="[1]", skip=("g",))
    complete(world, fail=lambda c: c.task_id == "f")


def items(world: World, state: Any) -> None:
    """One item, of a mapped task that is over with it, is cleared."""
    world.dag(literal("m", 1), dag_id=f"items-{state}")
    run = world.run(f"items-{state}")
    world.end(*world.take(), state)
    clear(world, run, "m[0]")
    end_run(world, run)


def test_every_legal_transition_is_made_and_no_other(world: World) -> None:
    world.node(slots=1)
    ordinary(world)
    for state in ("success", "failed", "skipped"):
        items(world, state)
    for state in LEGAL:
        for to in BY_HAND:
            run, claims = brought_into(world, state, f"{state}-{to}")
            note(world, run)
            if to == "clear":
                clear(world, run, "t", upstream=state == "expanded")
            else:
                mark(world, run, to, "t")
            for claim in claims:
                world.end(claim, "interrupted")
            end_run(world, run)
    made = set()
    now: dict[str, str] = {}
    with world.engine.begin() as c:
        for subject, state in c.execute(text("SELECT subject, state FROM event WHERE kind = 'task' ORDER BY id")):
            if subject in now:
                made.add((now[subject], state))
            now[subject] = state
    assert made == {(before, after) for before in LEGAL for after in LEGAL[before]}
