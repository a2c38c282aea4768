"""The driver on a real database: what is recorded, who may drive, and what people read when it fails."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from runner.rollout import driver
from runner.rollout.facts import Schema
from runner.rollout.fleet import LiveFleet
from runner.rollout.gate import Tally
from runner.rollout.plan import Wish, plan
from runner.settings import RefusedError, Settings, UsageError
from runner.state import nodes, orders, queries, rollouts, transitions
from runner.state.views import RolloutRow, StepRow

from .conftest import GROUP, Pool

SETTINGS = Settings(env="test")
WISH = Wish("new", before="old", ready_seconds=60, heartbeat_seconds=60, drain_seconds=60)


def file(pool: Pool, wish: Wish = WISH) -> int:
    facts = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default").facts()
    with pool.engine.begin() as c:
        return rollouts.create(
            c,
            role="worker",
            pool="default",
            release=wish.release,
            strategy="replace",
            wish=vars(wish),
            steps=[(s.action, s.args) for s in plan(facts, wish)],
            who="me@here",
        )


def advance(pool: Pool, roll: int, owner: str = "s1") -> bool:
    return driver.advance(pool.engine, pool.cloud, roll, owner, SETTINGS)


def drive(pool: Pool, roll: int, turns: int = 60) -> tuple[RolloutRow, list[StepRow]]:
    for _ in range(turns):
        if not advance(pool, roll):
            break
        pool.play()
    with pool.engine.connect() as c:
        return rollouts.get(c, roll), rollouts.steps(c, roll)


def test_a_roll_ends_with_a_new_fleet_and_a_line_in_the_history(pool: Pool) -> None:
    # Given two nodes on the old release
    assert sorted(pool.serving().values()) == ["old", "old"]
    # When they are rolled
    roll, steps = drive(pool, file(pool))
    # Then each step is recorded, each new node had its heartbeat run, and the old ones are gone
    assert roll.state == "succeeded" and roll.error is None and roll.driver is None
    assert {s.state for s in steps} == {"done"} and all(s.started_at and s.ended_at for s in steps)
    assert sorted(pool.serving().values()) == ["new", "new"]
    assert pool.one("SELECT count(*) FROM dag_run WHERE run_type = 'heartbeat' AND state = 'success'") == 2
    assert pool.one("SELECT count(*) FROM node WHERE state = 'gone'") == 2
    assert pool.cloud.desired == 2 and pool.cloud.release == "new"
    assert pool.one("SELECT before || ' ' || after || ' ' || who FROM deploy WHERE kind = 'release'") == (
        "old new me@here"
    )
    events = pool.one("SELECT count(*) FROM event WHERE kind = 'rollout' AND state = 'step'")
    assert events == 2 * len(steps)


def test_only_one_roll_of_a_pool(pool: Pool) -> None:
    roll = file(pool)
    with pytest.raises(RefusedError) as e:
        file(pool)
    assert e.value.exit_code == 3
    assert (
        "me@here" in e.value.message
        and f"roll {roll}" in e.value.message
        and f"`deployctl watch {roll}`" in e.value.hint
    )


def test_one_driver_at_a_time_and_a_silent_one_is_replaced(pool: Pool) -> None:
    roll = file(pool)
    assert advance(pool, roll, "s1")
    before = pool.one("SELECT max(seq) FROM rollout_step WHERE state <> 'pending'")
    pool.play()
    # While the first is heard, the second does nothing
    assert advance(pool, roll, "s2")
    assert pool.one("SELECT driver FROM rollout") == "s1"
    assert pool.one("SELECT max(seq) FROM rollout_step WHERE state <> 'pending'") == before
    # When the first was silent for long, the second goes on
    with pool.engine.begin() as c:
        c.exec_driver_sql("UPDATE rollout SET driver_at = driver_at - interval '1 minute'")
    assert advance(pool, roll, "s2")
    assert pool.one("SELECT driver FROM rollout") == "s2"


def test_a_release_that_does_not_start_is_taken_back_with_the_numbers(pool: Pool) -> None:
    pool.broken.add("new")
    roll = file(pool)
    for _ in range(3):
        advance(pool, roll)
        pool.play()
    pool.age_steps(61)
    view, steps = drive(pool, roll)
    assert view.state == "failed"
    assert view.error is not None
    assert re.search(
        r"0 of 1 new nodes ready after \d+ s, 1 instances tried \(i-3: InService, not registered\)", view.error
    )
    assert [(s.action, s.state) for s in steps] == [
        ("tag", "done"),
        ("surge", "done"),
        ("wait_ready", "failed"),
        ("tag", "done"),
        ("retreat", "done"),
    ]
    assert pool.serving() == {"i-1": "old", "i-2": "old"}
    assert pool.cloud.desired == 2 and pool.cloud.release == "old" and set(pool.cloud.members) == {"i-1", "i-2"}
    assert pool.one("SELECT count(*) FROM deploy WHERE kind = 'release'") == 0


def test_a_release_that_fails_its_heartbeat_run_is_taken_back(pool: Pool) -> None:
    pool.failing.add("new")
    view, _ = drive(pool, file(pool))
    assert view.state == "failed"
    assert view.error == "heartbeat run failed on 1 of 1 new nodes (i-3: ImportError: no module)"
    assert pool.serving() == {"i-1": "old", "i-2": "old"}


def test_each_new_node_is_tried_as_it_comes_and_once(pool: Pool) -> None:
    # Given a batch of two, of which one is there
    beats = "SELECT count(*) FROM dag_run WHERE run_type = 'heartbeat'"
    roll = file(pool, replace(WISH, batch=2))
    advance(pool, roll)
    pool.cloud.reconcile()
    with pool.engine.begin() as c:
        pool._register(c, pool.cloud.members["i-3"])
    # When the driver sees it, then it is tried, though the other has not come
    assert advance(pool, roll)
    assert pool.one("SELECT action FROM rollout_step WHERE state = 'running'") == "wait_ready"
    assert pool.one(beats) == 1
    # And not again when that one has
    assert drive(pool, roll)[0].state == "succeeded"
    assert pool.one(beats) == 2


def test_an_unregistered_heartbeat_dag_fails_the_gate_and_says_so(pool: Pool) -> None:
    with pool.engine.begin() as c:
        c.exec_driver_sql("UPDATE dag SET active = false; DELETE FROM dag")
    view, _ = drive(pool, file(pool))
    assert view.state == "failed" and "sluice_heartbeat is not registered" in (view.error or "")


def test_trouble_with_the_cloud_is_shown_and_tried_again(pool: Pool) -> None:
    roll = file(pool)
    advance(pool, roll)
    pool.cloud.trouble = ClientError({"Error": {"Code": "Throttling", "Message": "Rate exceeded"}}, "Describe")
    assert advance(pool, roll)
    assert "Rate exceeded" in pool.one("SELECT detail ->> 'trouble' FROM rollout_step WHERE state = 'running'")
    pool.cloud.trouble = None
    view, _ = drive(pool, roll)
    assert view.state == "succeeded"


def test_an_abort_stops_and_leaves_the_old_nodes_serving(pool: Pool) -> None:
    roll = file(pool)
    advance(pool, roll)
    pool.play()
    with pool.engine.begin() as c:
        assert rollouts.ask_abort(c, roll, "you@there")
    view, _ = drive(pool, roll)
    assert view.state == "aborted" and (view.error or "").startswith("aborted by you@there at step ")
    assert pool.serving() == {"i-1": "old", "i-2": "old"} and pool.cloud.release == "old"
    with pool.engine.begin() as c:
        assert not rollouts.ask_abort(c, roll, "you@there")


def test_the_heartbeat_run_of_a_node_is_created_once(pool: Pool) -> None:
    live = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default")
    at = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    first = live.heartbeat("i-1", at)
    assert live.heartbeat("i-1", at) == first
    assert live.heartbeat("i-2", at) != first


def test_a_node_cordoned_before_it_registers_never_becomes_ready(pool: Pool) -> None:
    live = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default")
    pool.broken.add("old")
    pool.cloud.desired = 3
    pool.play()
    live.cordon("i-3", reason="roll", by="me", seconds=60)
    pool.broken.clear()
    pool.play()
    pool.play()
    with pool.engine.connect() as c:
        view = queries.node(c, "i-3")
    assert view is not None and view.state in ("draining", "drained") and view.release == "old"


def test_a_machine_that_lives_is_not_written_off(pool: Pool) -> None:
    live = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default")
    assert live.gone(["i-1"]) == set()
    assert "i-1" in pool.serving()
    del pool.cloud.members["i-1"]
    assert live.gone(["i-1"]) == {"i-1"}
    assert "i-1" not in pool.serving()


def test_drive_all_carries_on_what_is_under_way(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    roll = file(pool)
    monkeypatch.setattr(driver._Background, "cloud", pool.cloud)
    settings = Settings(env="test")
    for _ in range(60):
        driver.drive_all(pool.engine, settings, "s1", wait=True)
        pool.play()
    with pool.engine.connect() as c:
        assert rollouts.get(c, roll).state == "succeeded"


def test_an_unknown_roll_is_said_so(pool: Pool) -> None:
    with pool.engine.connect() as c, pytest.raises(UsageError, match="no roll 77"):
        rollouts.get(c, 77)


def test_a_drain_waits_for_the_tasks_of_the_old_node(pool: Pool) -> None:
    # Given a roll whose old node runs something
    roll = file(pool)
    with pool.engine.begin() as c:
        c.exec_driver_sql("UPDATE node_heartbeat SET at = now()")
    with pool.engine.begin() as c:
        transitions.create_run(c, "sluice_heartbeat", dt.datetime(2026, 1, 1, tzinfo=dt.UTC), queue="default")
        (message,) = transitions.dispatch(c)
        claim = transitions.claim(c, message.task_instance, message.attempt, node_id="i-1", lease_seconds=300)
    assert claim is not None
    # When the roll comes to it
    for _ in range(10):
        advance(pool, roll)
        pool.play()
    # Then it drains and is not terminated
    with pool.engine.connect() as c:
        node = queries.node(c, "i-1")
    assert node is not None and node.state == "draining" and node.reason == f"roll {roll} to new"
    assert pool.cloud.members["i-1"].lifecycle == "InService"
    # And goes once the task has ended
    with pool.engine.begin() as c:
        transitions.finish(c, [transitions.Outcome(claim.task_instance, claim.token, "success")])
        assert nodes.running(c, "i-1") == 0
    view, _ = drive(pool, roll)
    assert view.state == "succeeded"


def run_on(pool: Pool, node_id: str, outcome: str, times: int) -> None:
    """So many tasks of an ordinary run end like this on a node."""
    for _ in range(times):
        with pool.engine.begin() as c:
            run = transitions.create_run(c, "sluice_heartbeat", dt.datetime.now(dt.UTC), queue="by-hand")
            c.execute(text("UPDATE task_instance SET state = 'queued', attempt = 1 WHERE run_id = :r"), {"r": run})
            task = c.execute(text("SELECT id FROM task_instance WHERE run_id = :r"), {"r": run}).scalar_one()
            claim = transitions.claim(c, task, 1, node_id=node_id, lease_seconds=300)
            assert claim is not None
            transitions.finish(c, [transitions.Outcome(claim.task_instance, claim.token, outcome)])  # type: ignore[arg-type]


def test_tasks_are_counted_by_what_their_node_runs_heartbeats_left_out(pool: Pool) -> None:
    live = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default")
    run_on(pool, "i-1", "failed", 2)
    mark = live.mark()
    pool.cloud.release = "new"
    pool.cloud.desired = 3
    pool.play()
    run_on(pool, "i-1", "success", 3)
    run_on(pool, "i-2", "failed", 1)
    run_on(pool, "i-3", "failed", 2)
    with pool.engine.begin() as c:
        transitions.create_run(c, "sluice_heartbeat", dt.datetime.now(dt.UTC), run_type="heartbeat", queue="node.i-3")
    pool.play()
    assert live.tallies("new", mark) == (Tally(2, 2), Tally(4, 1))
    assert live.others("new") == ["i-1", "i-2"]


def test_a_release_whose_tasks_fail_is_taken_back_with_the_numbers(pool: Pool) -> None:
    # Given a canary that bakes beside old nodes
    roll = file(pool, replace(WISH, canary=1, bake_seconds=600))
    for _ in range(8):
        advance(pool, roll)
        pool.play()
    # When its tasks fail
    run_on(pool, "i-1", "success", 40)
    run_on(pool, "i-3", "failed", 25)
    pool.age_steps(20)
    view, _ = drive(pool, roll)
    # Then the rest of the bake is spared
    assert view.state == "failed"
    assert (view.error or "").startswith("25 of 25 tasks failed on the new release, 0 of 40 on the old one (p = ")
    assert pool.serving() == {"i-1": "old", "i-2": "old"}


def test_one_that_waits_begins_when_the_other_has_succeeded_and_not_at_all_if_it_has_not(pool: Pool) -> None:
    def waiting() -> int:
        with pool.engine.begin() as c:
            first = rollouts.create(
                c, role="web", pool="web", release="new", strategy="replace", wish={}, steps=[], who="me@here"
            )
            second = rollouts.create(
                c,
                role="worker",
                pool="default",
                release="new",
                strategy="replace",
                wish={"after": [first], "before": "old"},
                steps=[("tag", {"group": GROUP, "release": "new", "before": "old"})],
                who="me@here",
            )
        assert advance(pool, second) and pool.cloud.release == "old"
        return second

    second = waiting()
    with pool.engine.begin() as c:
        assert rollouts.finish(c, second - 1, "failed")
    assert not advance(pool, second)
    with pool.engine.connect() as c:
        view = rollouts.get(c, second)
    assert (view.state, view.error) == ("aborted", f"not begun: roll {second - 1} before it did not succeed")
    second = waiting()
    with pool.engine.begin() as c:
        assert rollouts.finish(c, second - 1, "succeeded")
    assert drive(pool, second)[0].state == "succeeded"
    assert set(pool.serving().values()) == {"new"}


def test_a_revert_stops_a_roll_and_another_one_brings_the_old_release_back(pool: Pool) -> None:
    # Given a roll whose first batch has passed
    roll = file(pool)
    while not pool.one("SELECT 1 FROM rollout_step WHERE action = 'terminate' AND state = 'done'"):
        advance(pool, roll)
        pool.play()
    with pool.engine.begin() as c:
        assert rollouts.ask_abort(c, roll, "you@there", revert=True)
    assert drive(pool, roll)[0].state == "aborted"
    # Then a second one is under way, of the same pool, and by the same hand
    with pool.engine.connect() as c:
        back = rollouts.next_of(c, roll)
        assert back is not None and rollouts.get(c, back).created_by == "me@here"
    assert drive(pool, back)[0].state == "succeeded"
    assert sorted(pool.serving().values()) == ["old", "old"] and pool.cloud.release == "old"


def test_expired_credentials_let_the_roll_go_for_others(pool: Pool) -> None:
    roll = file(pool)
    advance(pool, roll)
    pool.cloud.trouble = ClientError({"Error": {"Code": "ExpiredToken", "Message": "expired"}}, "Describe")
    with pytest.raises(driver.CredentialsError) as e:
        advance(pool, roll)
    assert f"--resume {roll}" in e.value.hint
    assert pool.one("SELECT driver FROM rollout") is None
    pool.cloud.trouble = None
    assert advance(pool, roll, "s2") and pool.one("SELECT driver FROM rollout") == "s2"


def test_a_driver_that_was_replaced_does_nothing_any_more(pool: Pool) -> None:
    roll = file(pool)
    journal = driver.DbJournal(pool.engine, roll, "s1")
    assert journal.load() is not None
    with pool.engine.begin() as c:
        c.exec_driver_sql("UPDATE rollout SET driver = 's2'")
    fleet = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default", guard=journal.check)
    for act in (
        lambda: fleet.set_desired(3),
        lambda: fleet.terminate("i-1", decrement=True),
        lambda: fleet.set_release("new"),
        lambda: journal.start(1, {}),
        lambda: journal.done(1, {}),
    ):
        with pytest.raises(driver.UnseatedError):
            act()
    assert pool.cloud.desired == 2 and pool.cloud.release == "old"


def test_a_schema_that_cannot_be_migrated_now_is_tried_again(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default").facts()
    done: list[str] = []

    def migrate(self: LiveFleet, release: str, phase: str) -> None:
        done.append(phase)
        if len(done) == 1:
            raise OperationalError("ALTER TABLE", {}, Exception("canceling statement due to lock timeout"))

    monkeypatch.setattr(LiveFleet, "migrate", migrate)
    with pool.engine.begin() as c:
        roll = rollouts.create(
            c,
            role="worker",
            pool="default",
            release="new",
            strategy="replace",
            wish=vars(WISH),
            steps=[(s.action, s.args) for s in plan(replace(facts, schema=Schema(("pre_2",), ("post_2",))), WISH)],
            who="me@here",
        )
    assert advance(pool, roll)
    assert "lock timeout" in pool.one("SELECT detail ->> 'trouble' FROM rollout_step WHERE seq = 1")
    assert drive(pool, roll)[0].state == "succeeded" and done == ["pre", "pre", "post"]


def test_a_heartbeat_run_that_nobody_can_run_any_more_is_ended_with_its_roll(pool: Pool) -> None:
    # Given a new node that hangs: it registers, is heard, and takes nothing
    roll = file(pool, replace(WISH, heartbeat_seconds=0.2))
    advance(pool, roll)
    pool.cloud.reconcile()
    with pool.engine.begin() as c:
        pool._register(c, pool.cloud.members["i-3"])
        c.execute(text("UPDATE node SET slots = 0 WHERE release = 'new'"))
    assert drive(pool, roll)[0].state == "failed"
    assert pool.one("SELECT count(*) FROM dag_run WHERE state = 'running'") == 0


def change_in_place(pool: Pool) -> None:
    """What the agents do with their orders: the new release's node beside the old one, which gives way."""
    for machine, member in pool.cloud.members.items():
        with pool.engine.begin() as c:
            order = orders.find(c, machine)
            if order is None:
                continue
            there = queries.machine(c, machine)
            new = next((n for n in there if n.release == order.release), None)
            node_id = new.node_id if new else f"{machine}.{order.release}"
            if new is None:
                pool._register(c, replace(member, instance_id=node_id, release=order.release))
                c.execute(text("UPDATE node SET instance_id = :m WHERE node_id = :n"), {"m": machine, "n": node_id})
            nodes.heartbeat(c, node_id)
            for other in there:
                if other.release != order.release:
                    nodes.cordon(c, other.node_id, reason=order.reason, by="agent", deadline_seconds=60)
                    nodes.drained(c, other.node_id)


@pytest.mark.parametrize("bad", [False, True])
def test_nodes_change_in_place_and_change_back(pool: Pool, bad: bool) -> None:
    pool.failing |= {"new"} if bad else set()
    roll = file(pool, replace(WISH, strategy="in-place", batch=2))
    for _ in range(60):
        if not advance(pool, roll):
            break
        pool.play()
        change_in_place(pool)
    with pool.engine.connect() as c:
        view = rollouts.get(c, roll)
    assert view.state == ("failed" if bad else "succeeded")
    assert pool.cloud.launched == 2 and set(pool.cloud.members) == {"i-1", "i-2"}
    serving = {"i-1": "old", "i-2": "old"} if bad else {"i-1.new": "new", "i-2.new": "new"}
    assert pool.serving() == serving
    assert pool.cloud.release == ("old" if bad else "new")
    live = LiveFleet(pool.engine, pool.cloud, SETTINGS, "worker", "default")
    assert live.facts().outdated("new") == (["i-1", "i-2"] if bad else [])
