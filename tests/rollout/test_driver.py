"""The driver over a fleet in memory: killed at every point, it ends in the same fleet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.rollout.plan import Wish

from .memory import Drill, MemoryFleet, shuffled

WISH = Wish("new", ready_seconds=30, heartbeat_seconds=20, drain_seconds=60)


def drill(n: int = 2, batch: int = 1, crash_at: int = 0, seed: int = 0, **fleet: object) -> Drill:
    wish = Wish("new", batch=batch, ready_seconds=30, heartbeat_seconds=20, drain_seconds=60)
    return Drill(shuffled(seed, MemoryFleet.of(n, **fleet)), wish, crash_at)  # type: ignore[arg-type]


def test_a_roll_replaces_every_node_and_never_has_fewer() -> None:
    d = drill(3)
    assert d.run() == "succeeded"
    assert d.settled() == (3, 3, "new", ["new"] * 3)
    assert d.fleet.fewest_serving == 3 and d.fleet.killed_tasks == 0
    assert len(d.fleet.heartbeats) == 3


def test_a_batch_does_not_wait_for_the_machines_of_the_last_one_and_the_last_one_waits_for_all() -> None:
    # Given machines that take long to shut down
    d = drill(3)
    for m in d.fleet.machines:
        m.shutdown = 40
    lasting: list[int] = []
    # When they are rolled one by one
    assert d.run(at=lambda d: lasting.append(sum(m.alive and not m.lifecycle for m in d.fleet.machines))) == "succeeded"
    # Then they shut down side by side, and when the roll is over all are off
    assert max(lasting) == 3 and len(lasting) < 3 * 40
    assert not any(m.alive and not m.lifecycle for m in d.fleet.machines)
    assert {m.id: m.node for m in d.fleet.machines if not m.alive} == dict.fromkeys(["i-1", "i-2", "i-3"], "gone")
    assert d.fleet.fewest_serving == 3


POINTS = len((lambda d: (d.run(), d.points)[1])(drill(2)))


@pytest.mark.parametrize("crash_at", range(1, POINTS + 1))
def test_a_driver_killed_at_any_point_is_followed_by_one_that_ends_in_the_same_fleet(crash_at: int) -> None:
    d = drill(2, crash_at=crash_at)
    assert d.run() == "succeeded"
    assert len(d.points) >= crash_at, "the crash was not reached"
    assert d.settled() == (2, 2, "new", ["new", "new"])
    assert d.fleet.launched == 4, "one surge for each old node, however often it was asked for"
    assert d.fleet.fewest_serving == 2 and d.fleet.killed_tasks == 0


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 120), st.integers(0, 99))
def test_any_fleet_any_batch_any_crash(n: int, batch: int, crash_at: int, seed: int) -> None:
    d = drill(n, batch, crash_at, seed)
    assert d.run() == "succeeded"
    assert d.settled() == (n, n, "new", ["new"] * n)
    assert d.fleet.fewest_serving == n and d.fleet.killed_tasks == 0


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["broken", "failing"]), st.integers(1, 4), st.integers(1, 3), st.integers(0, 80), st.integers(0, 99)
)
def test_a_bad_release_is_taken_back_and_the_old_one_serves_on(
    how: str, n: int, batch: int, crash_at: int, seed: int
) -> None:
    d = drill(n, batch, crash_at, seed, **{how: frozenset({"new"})})
    assert d.run() == "failed"
    assert d.settled() == (n, n, "old", ["old"] * n)
    assert d.fleet.fewest_serving == n and d.fleet.killed_tasks == 0
    assert d.journal.rollout.error is not None
    assert ("not registered" if how == "broken" else "ValueError: broken") in d.journal.rollout.error


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(0, 60), st.integers(0, 80), st.integers(0, 99))
def test_an_abort_at_any_moment_leaves_as_many_healthy_nodes(
    n: int, batch: int, abort_at: int, crash_at: int, seed: int
) -> None:
    d = drill(n, batch, crash_at, seed)
    moments = iter(range(10**6))

    def abort(drill: Drill) -> None:
        if next(moments) == abort_at:
            drill.journal.rollout.wish["abort"] = "somebody"

    state = d.run(at=abort)
    desired, serving, tag, releases = d.settled()
    assert (desired, serving) == (n, n)
    assert d.fleet.fewest_serving == n and d.fleet.killed_tasks == 0
    if state == "aborted":
        assert tag == ("new" if "new" in releases else "old")
    else:
        assert state == "succeeded" and releases == ["new"] * n


def test_a_baseline_raised_in_the_middle_is_respected() -> None:
    # Given a roll of two nodes
    d = drill(2)

    def raise_minimum(drill: Drill) -> None:
        # When the operator raises the baseline to 3 while one drains
        if drill.fleet.minimum == 2 and any(m.node == "draining" for m in drill.fleet.machines):
            drill.fleet.minimum, drill.fleet.desired = 3, max(3, drill.fleet.desired)

    # Then the roll ends with three new nodes
    assert d.run(at=raise_minimum) == "succeeded"
    assert d.settled() == (3, 3, "new", ["new"] * 3)


def test_a_new_node_that_dies_before_the_gate_is_replaced() -> None:
    d = drill(1)

    def lose(drill: Drill) -> None:
        for m in drill.fleet.machines:
            if m.id == "i-2" and m.node == "ready" and m.alive:
                m.alive, m.lifecycle, m.node = False, "", "gone"

    assert d.run(at=lose) == "succeeded"
    assert d.settled() == (1, 1, "new", ["new"])
    assert d.fleet.launched == 3


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["worker", "scheduler", "web"]),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 120),
    st.integers(0, 99),
)
def test_any_role_surge_and_canary(
    role: str, n: int, batch: int, surge: int, canary: int, crash_at: int, seed: int
) -> None:
    wish = Wish("new", batch, 60, 20, 60, surge=surge, canary=canary, bake_seconds=3)
    d = Drill(shuffled(seed, MemoryFleet.of(n, role=role)), wish, crash_at)
    d.fleet.minimum = 0
    assert d.run() == "succeeded"
    assert d.settled() == (n, n, "new", ["new"] * n)
    at_once = min(n, max(batch, canary))
    assert d.fleet.fewest_serving >= n - at_once + min(surge, at_once) * (at_once == min(n, batch) == batch == canary)
    assert d.fleet.killed_tasks == 0


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["broken", "failing", "bad_tasks"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 80),
    st.integers(0, 99),
)
def test_a_bad_release_is_taken_back_whatever_the_surge(
    how: str, n: int, batch: int, surge: int, crash_at: int, seed: int
) -> None:
    wish = Wish("new", batch, 30, 20, 60, surge=surge)
    d = Drill(shuffled(seed, MemoryFleet.of(n, **{how: frozenset({"new"})})), wish, crash_at)  # type: ignore[arg-type]
    assert d.run() == "failed"
    assert d.settled() == (n, n, "old", ["old"] * n)
    assert d.fleet.killed_tasks == 0 and d.journal.then is None
    assert d.fleet.fewest_serving >= n - min(n, batch)


def test_a_release_that_goes_bad_later_is_taken_back_where_it_had_passed() -> None:
    # Given a release whose tasks fail from the second batch on
    d = drill(3)

    def spoil(drill: Drill) -> None:
        if sum(m.release == "new" and m.alive for m in drill.fleet.machines) == 2:
            drill.fleet.bad_tasks = frozenset({"new"})

    assert d.run(at=spoil) == "failed"
    assert "30 of 40 tasks failed on the new release, 1 of 400 on the old one" in (d.journal.rollout.error or "")
    # Then its second node is gone, and a rollout back to the old release is filed for the first
    assert d.settled() == (3, 3, "old", ["new", "old", "old"])
    assert d.journal.then is not None
    wish, steps = d.journal.then
    assert (wish.release, wish.stay) == ("old", True)
    assert [s[1]["instances"] for s in steps if s[0] == "terminate"] == [["i-4"]]
    # And that ends it
    back = Drill(d.fleet, wish)
    assert back.run() == "succeeded"
    assert d.settled() == (3, 3, "old", ["old"] * 3)


def test_a_failed_gate_may_be_told_to_change_nothing_back() -> None:
    d = Drill(MemoryFleet.of(2, failing=frozenset({"new"})), Wish("new", stay=True))
    assert d.run() == "failed"
    assert d.settled() == (3, 3, "new", ["new", "old", "old"]) and d.journal.then is None


def test_without_capacity_it_stops_says_so_and_can_be_run_again() -> None:
    # Given a cloud that has no machine left after the first batch
    d = drill(2)

    def run_out(drill: Drill) -> None:
        drill.fleet.no_capacity = sum(m.release == "new" for m in drill.fleet.machines) == 1

    assert d.run(at=run_out) == "failed"
    error = d.journal.rollout.error or ""
    assert error.startswith("stopped: 0 of 1 new nodes ready") and "sufficient m7i.large capacity" in error
    # Then nothing is said against the release: what has it keeps it
    assert d.settled() == (2, 2, "new", ["new", "old"]) and d.journal.then is None
    # And once there is capacity the rest follows
    d.fleet.no_capacity = False
    again = Drill(d.fleet, Wish("new"))
    assert again.run() == "succeeded" and again.settled() == (2, 2, "new", ["new", "new"])


def test_nodes_of_the_old_release_that_come_after_the_plan_are_rolled_too() -> None:
    d = drill(2)
    # Given an instance that was launched between plan and tag
    d.fleet.desired = 3
    d.fleet.tick()
    d.fleet.maximum = 5
    assert d.run() == "succeeded"
    assert d.settled() == (3, 3, "new", ["new"] * 3)


@pytest.mark.parametrize("wait", [True, False])
def test_a_drain_that_never_ends(wait: bool) -> None:
    # Given a task that ends after a day
    d = Drill(MemoryFleet.of(1), Wish("new", drain_seconds=30, wait=wait))
    d.fleet.machines[0].busy = 1500
    # When it is waited for, the step says that it is late; else the machine goes with it
    assert d.run() == "succeeded"
    drained = next(s for s in d.journal.steps if s.action == "drain")
    assert drained.detail.get("forced", False) is not wait
    assert d.fleet.killed_tasks == 0  # this cloud hands on what it ends


def test_a_schema_goes_along() -> None:
    from runner.rollout.facts import Schema

    fleet = MemoryFleet.of(1)
    fleet.schema = Schema(("pre_2",), ("post_2",))
    d = Drill(fleet, Wish("new"))
    assert d.run() == "succeeded"
    assert fleet.migrated == ["pre", "post"]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 80), st.integers(0, 99))
def test_in_place_changes_every_node_and_replaces_none(n: int, batch: int, crash_at: int, seed: int) -> None:
    d = Drill(shuffled(seed, MemoryFleet.of(n)), Wish("new", batch, 60, 20, 60, strategy="in-place"), crash_at)
    assert d.run() == "succeeded"
    assert d.settled() == (n, n, "new", ["new"] * n)
    assert d.fleet.launched == n and d.fleet.fewest_serving == n and d.fleet.killed_tasks == 0
    assert not any(m.beside for m in d.fleet.machines)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["broken", "failing", "bad_tasks"]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 60),
    st.integers(0, 99),
)
def test_in_place_a_bad_release_is_taken_back(how: str, n: int, batch: int, crash_at: int, seed: int) -> None:
    fleet = MemoryFleet.of(n, **{how: frozenset({"new"})})  # type: ignore[arg-type]
    d = Drill(shuffled(seed, fleet), Wish("new", batch, 30, 20, 60, strategy="in-place"), crash_at)
    assert d.run() == "failed"
    assert d.settled() == (n, n, "old", ["old"] * n)
    assert d.fleet.fewest_serving == n and d.fleet.launched == n


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=4),
    st.integers(0, 60),
    st.integers(0, 99),
)
def test_machines_that_die_at_any_moment_are_replaced_and_the_pool_keeps_its_size(
    n: int, batch: int, surge: int, deaths: list[tuple[int, int]], crash_at: int, seed: int
) -> None:
    d = Drill(shuffled(seed, MemoryFleet.of(n)), Wish("new", batch, 60, 40, 60, surge=surge), crash_at)
    d.fleet.minimum = 0
    moments = iter(range(10**6))

    def die(drill: Drill) -> None:
        now = next(moments)
        alive = [m for m in drill.fleet.machines if m.alive]
        for at, which in deaths:
            if at == now and alive:
                m = alive[which % len(alive)]
                step = next((s for s in drill.journal.steps if s.state == "running"), None)
                if step and step.action == "terminate" and m.lifecycle == "InService":
                    continue  # between looking and terminating it: milliseconds, and one machine too many
                m.alive, m.lifecycle, m.busy = False, "", 0
                m.node = "gone" if m.node else ""

    assert d.run(at=die) == "succeeded"
    assert d.settled() == (n, n, "new", ["new"] * n)
