"""Runs that wait for each other, what follows their end, sensors, retries, interruptions, and the node's pulse."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import text

from runner.authoring.spec import TaskSpec
from runner.scheduler import lost_nodes
from runner.state import nodes, transitions
from runner.state.nodes import NodeInfo

from .conftest import DATE, World, task
from .test_by_hand import clear, complete, end_run, mark

DAY = dt.timedelta(days=1)


def create(world: World, day: int, dag_id: str = "d", **options: Any) -> int:
    run = world.do(lambda c: transitions.create_run(c, dag_id, DATE + day * DAY, **options))
    assert run is not None
    return int(run)


def start_runs(world: World) -> int:
    after, n = "", 0
    while found := world.do(lambda c, after=after: transitions.start_runs(c, after)):
        after, n = found[0], n + found[1]
    return n


def callback(name: str, **options: Any) -> TaskSpec:
    return TaskSpec(task_id=name, kind="callback", trigger_rule="always", **options)


# --- one after another ----------------------------------------------------------------------------------------


def test_no_more_runs_than_allowed_and_the_rest_in_order(world: World) -> None:
    world.dag(task("a"), max_active_runs=1)
    world.node()
    first = create(world, 0)
    backfill = create(world, 1, run_type="backfill")
    scheduled = create(world, 2, run_type="scheduled")
    urgent = create(world, 3, priority=5)
    order = [first]
    assert [world.run_state(r) for r in (first, backfill, scheduled, urgent)] == ["running", *["queued"] * 3]
    assert world.states(backfill) == {}
    assert start_runs(world) == 0
    for _ in range(3):
        complete(world)
        # A run that is made just now does not pass those that wait
        assert start_runs(world) == 1
        order += [r for r in (backfill, scheduled, urgent) if world.run_state(r) == "running"]
    assert order == [first, urgent, scheduled, backfill]


def test_a_new_run_does_not_pass_those_that_are_queued(world: World) -> None:
    world.dag(task("a"), max_active_runs=1)
    world.node()
    create(world, 0)
    second = create(world, 1)
    complete(world)
    third = create(world, 2)
    assert (world.run_state(second), world.run_state(third)) == ("queued", "queued")


def test_a_full_dag_does_not_hold_up_the_next_one(world: World) -> None:
    for dag_id in ("a", "b"):
        world.dag(task("t"), dag_id=dag_id, max_active_runs=1)
        create(world, 0, dag_id)
        create(world, 1, dag_id)
    world.node()
    end_run(world, int(world.one("SELECT id FROM dag_run WHERE dag_id = 'b' AND state = 'running'")))
    assert start_runs(world) == 1


def test_a_queued_run_can_be_cancelled(world: World) -> None:
    world.dag(task("a"), max_active_runs=1)
    create(world, 0)
    run = create(world, 1)
    end_run(world, run)
    assert world.run_state(run) == "failed"
    assert start_runs(world) == 0


def test_a_task_waits_for_itself_in_the_run_before(world: World) -> None:
    world.dag(task("a", depends_on_past=True), task("b", "a"))
    world.node()
    first, second, third = (create(world, day) for day in range(3))
    assert [world.states(r)["a"] for r in (first, second, third)] == ["ready", "waiting", "waiting"]
    # When it fails there, then it goes on waiting; when somebody marks it, it starts
    world.end(*world.take(), "failed")
    assert world.do(transitions.release_past) == 0
    mark(world, first, "success", "a")
    assert world.do(transitions.release_past) == 1
    assert world.states(second)["a"] == "ready"
    # A skip lets the next one go as well
    complete(world)
    assert world.do(transitions.release_past) == 1
    mark(world, third, "skipped", "a")
    assert create(world, 3)
    assert world.one("SELECT state FROM task_instance WHERE task_id = 'a' ORDER BY id DESC LIMIT 1") == "ready"


def test_runs_that_start_together_wait_for_each_other(world: World) -> None:
    # Given a limit that made three runs wait, and is gone now
    world.dag(task("a", depends_on_past=True), max_active_runs=1)
    world.node()
    runs = [create(world, day) for day in range(4)]
    complete(world)
    world.do(lambda c: c.execute(text("UPDATE dag SET max_active_runs = NULL")))
    assert start_runs(world) == 3
    for run in runs[1:]:
        world.do(transitions.release_past)
        (claim,) = world.take()
        assert claim.run_id == run
        world.end(claim)


def test_a_mapped_task_and_a_sensor_wait_for_their_past_too(world: World) -> None:
    world.dag(
        task("m", kind="mapped", map_over=({"arg": "x", "length": 2},), depends_on_past=True),
        task("s", kind="sensor", depends_on_past=True),
    )
    world.node()
    first, second = create(world, 0), create(world, 1)
    assert world.states(second) == {"m": "waiting", "s": "waiting"}
    complete(world)
    sensor = world.one("SELECT id FROM task_instance WHERE run_id = :r AND kind = 'sensor'", r=first)
    assert world.do(lambda c: transitions.sensed(c, [(sensor, "success", None, None)])) == 1
    assert world.do(transitions.release_past) == 1
    assert (
        world.one("SELECT state FROM task_instance WHERE task_id = 'm' AND map_index < 0 ORDER BY id DESC")
        == "expanded"
    )
    assert world.states(second)["s"] == "deferred"


# --- the end of a run -----------------------------------------------------------------------------------------


def test_a_run_calls_back_once_it_has_ended(world: World) -> None:
    callbacks = (callback("@on_success"), callback("@on_failure", retries=1, retry_delay_seconds=0.0))
    world.dag(task("a"), callbacks=callbacks)
    world.node()
    run = world.run()
    complete(world, fail=lambda c: c.task_id in ("a", "@on_failure"))
    # The callback failed twice: the run says what its tasks have said
    assert world.states(run) == {"a": "failed", "@on_failure": "failed"}
    assert world.run_state(run) == "failed"
    assert world.one("SELECT unfinished FROM dag_run") == 0
    # When it is cleared and ends again, then it is called again, and for how it ended now
    clear(world, run)
    assert complete(world) == ["a", "@on_success"]
    clear(world, run)
    assert complete(world) == ["a", "@on_success"]
    assert world.states(run) == {"a": "success", "@on_failure": "failed", "@on_success": "success"}


def test_a_callback_goes_where_its_run_goes(world: World) -> None:
    world.dag(task("a"), callbacks=(callback("@on_success", priority=2),))
    world.node(queues=("node.n1",))
    create(world, 0, queue="node.n1", priority=10)
    world.end(*world.take())
    assert world.one("SELECT queue || priority FROM task_instance WHERE kind = 'callback'") == "node.n112"


# --- sensors, retries, interruptions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "after"), [("success", "ready"), ("failed", "upstream_failed"), ("skipped", "skipped")]
)
def test_what_a_sensor_has_seen(world: World, state: str, after: str) -> None:
    world.dag(task("a"), task("s", "a", kind="sensor"), task("b", "s", inputs=("s",)))
    world.node()
    run = world.run()
    world.end(*world.take())
    assert world.states(run)["s"] == "deferred"
    sensor = world.one("SELECT id FROM task_instance WHERE kind = 'sensor'")
    assert world.do(lambda c: transitions.sensed(c, [(sensor, state, '{"file": 1}', "why")])) == 1
    assert (world.states(run)["s"], world.states(run)["b"]) == (state, after)
    assert world.do(lambda c: transitions.sensed(c, [(sensor, "failed", None, None)])) == 0
    if state == "success":
        (claim,) = world.take()
        assert claim.inputs == {"s": {"file": 1}}


def delays(world: World, n: int, **options: Any) -> list[float]:
    """How long each retry waits."""
    world.dag(task("a", retries=n, **options))
    world.node()
    world.run()
    found = []
    for _ in range(n):
        world.end(*world.take(), "failed")
        found.append(float(world.one("SELECT extract(epoch FROM available_at - ended_at) FROM task_instance")))
        world.do(lambda c: c.execute(text("UPDATE task_instance SET available_at = now()")))
        assert world.do(transitions.wake_retries) == 1
    return found


def test_retries_wait_a_fixed_time(world: World) -> None:
    assert delays(world, 3, retry_delay_seconds=7.0) == [7, 7, 7]


def test_retries_wait_longer_each_time_up_to_a_cap(world: World) -> None:
    options = {"retry_delay_seconds": 10.0, "retry_backoff": 3.0, "retry_max_delay_seconds": 50.0}
    assert delays(world, 4, **options) == [10, 30, 50, 50]


def test_retries_leave_a_share_to_chance(world: World) -> None:
    found = delays(world, 8, retry_delay_seconds=100.0, retry_jitter=0.25)
    assert all(75 <= d <= 100 for d in found)
    assert len(set(found)) > 1


def test_what_asks_to_be_started_later_uses_no_try(world: World) -> None:
    world.dag(task("a", retries=1))
    world.node()
    world.run()
    world.end(*world.take(), "deferred", delay_seconds=90.0, error="not yet")
    assert float(world.one("SELECT extract(epoch FROM available_at - ended_at) FROM task_instance")) == 90
    assert world.one("SELECT detail FROM event WHERE state = 'up_for_retry'") == "deferred: not yet"
    world.do(lambda c: c.execute(text("UPDATE task_instance SET available_at = now()")))
    world.do(transitions.wake_retries)
    (claim,) = world.take()
    assert (claim.try_number, claim.attempt) == (1, 2)


def test_an_interruption_is_counted_apart_with_its_cause(world: World) -> None:
    world.dag(task("a"))
    world.node()
    world.run()
    world.take()
    assert world.do(lambda c: transitions.interrupt_node(c, "n1", "spot instance reclaimed")) == 1
    assert world.one("SELECT interruptions || ' ' || tries FROM task_instance") == "1 0"
    assert (
        world.one("SELECT detail FROM event WHERE detail LIKE 'interrupted%'") == "interrupted: spot instance reclaimed"
    )
    (claim,) = world.take()
    assert (claim.interruptions, claim.try_number) == (1, 1)


def test_what_is_to_be_held_waits_for_proof(world: World) -> None:
    world.dag(task("held", on_lost="hold"), task("other"))
    world.node()
    run = world.run()
    world.take()
    expired = world.do(transitions.leases)
    assert world.do(lambda c: transitions.interrupt_leases(c, expired)) == 1
    assert world.states(run) == {"held": "running", "other": "ready"}
    # A person may decide, or the node is dead
    mark(world, run, "failed", "held")
    assert world.do(lambda c: transitions.interrupt_leases(c, world.do(transitions.leases))) == 1
    assert world.states(run)["held"] == "failed"
    clear(world, run, "held")
    world.take()
    world.do(lambda c: nodes.gone(c, "n1", cause="terminated"))
    assert world.states(run) == {"held": "ready", "other": "ready"}


# --- the pulse ------------------------------------------------------------------------------------------------


def test_a_heartbeat_renews_what_it_can_and_never_waits(world: World) -> None:
    world.dag(task("a"), task("b"), task("c"))
    world.node()
    run = world.run()
    a, b, c = world.take()
    mark(world, run, "failed", "b")
    # Given a row that somebody else has locked, and one of which the worker does not know
    other = world.engine.connect()
    begun = other.begin()
    other.execute(text("SELECT 1 FROM task_instance WHERE task_id = 'a' FOR UPDATE"))
    orders = world.do(lambda x: nodes.heartbeat(x, "n1", [a.token, b.token]))
    begun.rollback()
    other.close()
    # Then that one is still held, and renewed at the next beat
    assert orders.held == {a.token, b.token, c.token}
    assert orders.renewed == {b.token}
    assert orders.ended == {b.token}
    assert world.do(lambda x: nodes.heartbeat(x, "n1", [a.token, b.token])).renewed == {a.token, b.token}


def test_only_dead_machines_are_declared_gone(world: World) -> None:
    world.dag(task("a"), task("b"))
    for name in ("n1", "n2"):
        info = NodeInfo(
            node_id=name,
            role="worker",
            pool="p",
            release="r",
            boot_id="b",
            slots=1,
            queues=("default",),
            instance_id=f"i-{name}",
        )
        world.do(lambda c, info=info: nodes.register(c, info))
    run = world.run()
    first, second = world.dispatch()
    assert world.claim(first, "n1")
    assert world.claim(second, "n2")
    asked: list[list[str]] = []

    def existing(ids: list[str]) -> list[str]:
        asked.append(ids)
        return ["i-n2"]

    # Given nodes that were heard just now, then nobody is asked
    assert lost_nodes.hand_on(world.engine, existing) == 0
    assert asked == []
    # Given two that are silent, of which the cloud knows one
    world.do(lambda c: c.execute(text("UPDATE node_heartbeat SET at = now() - interval '1 day'")))
    assert lost_nodes.hand_on(world.engine, existing) == 1
    assert asked == [["i-n1", "i-n2"]]
    assert sorted(world.states(run).values()) == ["ready", "running"]
    assert world.one("SELECT state FROM node WHERE node_id = 'n1'") == "gone"
    assert lost_nodes.hand_on(world.engine, existing) == 0


@pytest.mark.parametrize("claimed", [False, True])
def test_the_heartbeat_run_of_a_node_ends_with_it(world: World, claimed: bool) -> None:
    # Given heartbeat runs on the own queues of two nodes, and an ordinary run that somebody put onto the first one's
    world.dag(task("a"), max_active_runs=None)
    for name in ("n1", "n2"):
        world.node(name, queues=(nodes.queue_of(name),))
    dates = (DATE + dt.timedelta(seconds=s) for s in range(3))

    def run_on(name: str, run_type: str) -> int:
        queue, date = nodes.queue_of(name), next(dates)
        found = world.do(lambda c: transitions.create_run(c, "d", date, run_type=run_type, queue=queue))
        return int(found)

    mine, other, ordinary = run_on("n1", "heartbeat"), run_on("n2", "heartbeat"), run_on("n1", "manual")
    if claimed:
        assert world.claim(next(m for m in world.dispatch() if m.queue == nodes.queue_of("n1")), "n1")
    # When the first is gone
    world.do(lambda c: nodes.gone(c, "n1", cause="terminated"))
    # Then nobody waits for its beat any more
    assert world.run_state(mine) == "failed"
    assert world.one("SELECT error FROM task_instance WHERE run_id = :r", r=mine) == "the node is gone: terminated"
    assert [world.run_state(run) for run in (other, ordinary)] == ["running", "running"]
