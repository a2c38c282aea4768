"""The autoscaler's policy: what it never does, whatever the load; and what it does in the cases people ask about."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.rollout.autoscale.policy import (
    Decision,
    History,
    Limits,
    Load,
    Node,
    backlog_per_slot,
    decide,
    merge,
    needed,
    reason,
)

LIMITS = Limits(1, 8, 4, cooldown_seconds=300, target_wait_seconds=60)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    low = draw(st.integers(0, 5))
    return Limits(
        low,
        low + draw(st.integers(0, 10)),
        draw(st.integers(1, 8)),
        cooldown_seconds=draw(st.sampled_from([0.0, 10.0, 300.0])),
        target_wait_seconds=draw(st.sampled_from([1.0, 60.0])),
    )


nodes = st.lists(
    st.tuples(st.sampled_from(["serves", "boots", "leaves", "away"]), st.integers(0, 4), st.booleans()), max_size=16
)


@st.composite
def loads(draw: st.DrawFn, limits: Limits) -> Load:
    found = [
        Node(f"i-{i}", state, 0 if state == "boots" or over else running, over and state == "leaves")
        for i, (state, running, over) in enumerate(draw(nodes))
    ]
    desired = max(limits.minimum, len(found) + draw(st.integers(0, 2)))
    return Load(
        ready=draw(st.integers(0, 200)),
        queued=draw(st.integers(0, 10)),
        oldest_wait_seconds=draw(st.floats(0, 500)),
        task_seconds=draw(st.none() | st.floats(0, 60)),
        nodes=found,
        desired=desired,
        room=max(limits.maximum + 1, desired),
        rolling=draw(st.booleans()),
    )


def after(bounds: Limits, load: Load, decision: Decision) -> tuple[int, int]:
    """(nodes that stay, the group's desired capacity) once the decision is carried out.

    At the baseline the group replaces what is terminated: its capacity stays.
    """
    asked = load.desired if decision.desired is None else decision.desired
    stay = load.size + (asked - load.desired) + len(decision.take_back) - len(decision.drain)
    return stay, asked - min(len(decision.terminate), max(0, asked - bounds.minimum))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_whatever_the_load_and_the_past(data: st.DataObject) -> None:
    # Given any pool in any state, and any past
    bounds = data.draw(limits())
    history, now = History(), 0.0
    for _ in range(data.draw(st.integers(1, 6))):
        load = data.draw(loads(bounds))
        now += data.draw(st.sampled_from([1.0, 20.0, 400.0]))
        # When it is decided on
        decision = decide(bounds, load, history, now)
        history = decision.history
        stay, desired = after(bounds, load, decision)
        by_id = {n.id: n for n in load.nodes}
        # Then no busy node is picked, and none that is not there to be picked
        assert all(by_id[i].running == 0 and by_id[i].state == "serves" for i in decision.drain)
        assert all(by_id[i].over and by_id[i].state == "leaves" for i in decision.terminate)
        assert all(by_id[i].state == "leaves" and not by_id[i].over for i in decision.take_back)
        # and nothing is kept that has nothing more to do: its place may be wanted
        assert load.rolling or {n.id for n in load.nodes if n.over} == set(decision.terminate)
        # never below the baseline: neither by what it takes, nor by what it leaves as it was
        if decision.drain:
            assert stay >= bounds.minimum
        assert desired >= bounds.minimum
        # never above the maximum
        assert bounds.minimum <= decision.needed <= decision.target <= bounds.maximum
        assert decision.desired is None or decision.desired <= load.room
        if decision.desired is not None or decision.take_back:
            assert load.size < stay <= bounds.maximum
        # up or down, never both; and during a rollout only up, and never into its room
        assert not (decision.drain and (decision.take_back or decision.desired is not None))
        if load.rolling:
            assert not decision.drain and not decision.terminate and not decision.take_back
            assert decision.desired is None or decision.desired <= bounds.maximum
        assert reason(bounds, load, decision)


@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_steady_load_moves_the_pool_once(tasks: int, slots: int, minimum: int) -> None:
    # Given as many tasks as ever, on nodes that come as asked for
    bounds = Limits(minimum, 8, slots, cooldown_seconds=30)
    history, size, changes = History(), 5, []
    for second in range(200):
        busy = min(tasks, size * slots)
        share = [busy // size + (i < busy % size) for i in range(size)] if size else []
        if size and second % 2:  # or packed, so that some are idle
            share = [min(slots, max(0, busy - i * slots)) for i in range(size)]
        load = Load(
            ready=tasks - busy,
            nodes=[Node(f"i-{i}", "serves", n) for i, n in enumerate(share)],
            desired=size,
            room=9,
        )
        decision = decide(bounds, load, history, float(second))
        history = decision.history
        now, _ = after(bounds, load, decision)
        if now != size:
            changes.append(now)
        size = now
    # Then it goes to the size that it needs and stays there: up or down, never back
    assert size == min(max(-(-tasks // slots), minimum), 8)
    assert changes in (sorted(changes), sorted(changes, reverse=True))


@given(st.lists(st.integers(0, 40), min_size=20, max_size=60), st.sampled_from([5.0, 20.0]))
@settings(max_examples=40, deadline=None)
def test_no_node_goes_that_was_needed_within_the_cool_down(tasks: list[int], cooldown: float) -> None:
    # Given a load that jumps
    bounds = Limits(0, 8, 4, cooldown_seconds=cooldown)
    history, size, wanted = History(), 0, []
    for second, count in enumerate(tasks):
        busy = min(count, size * 4)
        running = [Node(f"i-{i}", "serves", min(4, max(0, busy - 4 * i))) for i in range(size)]
        load = Load(ready=count - busy, nodes=running, desired=size, room=9)
        wanted.append(min(8, needed(bounds, load)))
        decision = decide(bounds, load, history, float(second))
        history = decision.history
        now, _ = after(bounds, load, decision)
        # Then it is never smaller than it had to be within that time
        assert now >= max(wanted[-int(cooldown) - 1 :]) or now >= size
        size = now


def idle(count: int, **more: object) -> Load:
    return Load(nodes=[Node(f"i-{i}", "serves") for i in range(count)], desired=count, room=9, **more)  # type: ignore[arg-type]


def test_zero_when_idle_and_allowed() -> None:
    # Given a pool that may be empty, idle for as long as the cool-down
    bounds = Limits(0, 8, 4, cooldown_seconds=300)
    first = decide(bounds, idle(3), History(), 1000.0)
    assert not first.acts
    assert not decide(bounds, idle(3), first.history, 1299.0).acts
    # Then all go; with a baseline, all but that, the youngest first
    assert set(decide(bounds, idle(3), first.history, 1300.0).drain) == {"i-0", "i-1", "i-2"}
    assert decide(LIMITS, idle(3), first.history, 1300.0).drain == ("i-2", "i-1")


def test_up_at_once_and_as_far_as_allowed() -> None:
    bounds = Limits(0, 8, 4)
    assert decide(bounds, Load(ready=1, room=9), History(), 0.0).desired == 1
    assert decide(bounds, Load(ready=500, room=9), History(), 0.0).desired == 8
    # What was asked for already is not asked for again
    assert not decide(bounds, Load(ready=500, desired=8, room=9), History(), 0.0).acts


def test_short_tasks_share_a_slot_and_late_ones_get_more() -> None:
    # Given 100 tasks of 6 s: within a minute, ten slots do them all
    assert needed(LIMITS, Load(ready=100, task_seconds=6.0)) == 3
    assert needed(LIMITS, Load(ready=100, task_seconds=None)) == 25
    assert needed(LIMITS, Load(ready=100, task_seconds=3600.0)) == 25
    # When they wait for twice the target, the guess was wrong by as much
    assert needed(LIMITS, Load(ready=100, task_seconds=6.0, oldest_wait_seconds=120)) == 5


def test_a_node_on_its_way_out_is_taken_back_before_another_is_asked_for() -> None:
    load = Load(
        ready=12,
        nodes=[
            Node("i-0", "serves", 4),
            Node("i-1", "leaves"),
            Node("i-2", "leaves", over=True),
            Node("i-3", "away", 2),
        ],
        desired=4,
        room=9,
    )
    decision = decide(LIMITS, load, History(), 0.0)
    # 16 tasks are 4 nodes: one there, one taken back, two more beside the two that go
    assert decision.take_back == ("i-1",) and decision.desired == 6 and decision.terminate == ("i-2",)


def test_a_rollout_keeps_its_room() -> None:
    surge = Load(ready=99, nodes=[Node(f"i-{i}", "serves", 4) for i in range(8)], desired=8, room=9, rolling=True)
    assert not decide(LIMITS, surge, History(), 0.0).acts
    assert not decide(LIMITS, idle(9, rolling=True), History(since=-999.0), 0.0).acts


def test_a_group_that_is_still_launching_is_not_asked_for_more() -> None:
    assert not decide(LIMITS, Load(ready=8, nodes=[Node("i-0", "boots")], desired=2, room=9), History(), 0.0).acts


def test_the_reason_is_in_numbers() -> None:
    load = Load(ready=500, oldest_wait_seconds=1.24, task_seconds=10.0, queued=3, room=9)
    decision = decide(LIMITS, load, History(), 0.0)
    assert reason(LIMITS, load, decision) == (
        "500 ready, the oldest for 1.2 s, 10 s each, 3 queued, 0 running: 22 nodes of 4 slots, 1 to 8 allowed"
    )


def test_the_history_survives_a_leader() -> None:
    history = History().add(1.0, 3, 300).add(2.0, 1, 300)
    assert history.most == 3 and History.of(history.as_json()) == history
    assert history.add(310.0, 0, 300).most == 0


def test_limits_that_are_none() -> None:
    for wrong in ((2, 1, 4), (-1, 1, 4), (0, 1, 0)):
        with pytest.raises(ValueError, match="is none"):
            Limits(*wrong)
    with pytest.raises(ValueError, match="target wait"):
        Limits(0, 1, 1, target_wait_seconds=0)


def test_the_mean_of_what_waits_and_the_backlog_per_slot() -> None:
    assert merge([], 60) is None and merge([(3, None)], 60) is None
    assert merge([(3, 10.0), (1, None)], 60) == 22.5
    assert merge([(1, 3600.0)], 60) == 60
    assert backlog_per_slot(4, 4, 8, 4) == 1.0
    assert backlog_per_slot(0, 0, 0, 4) == 0.0 and backlog_per_slot(1, 0, 0, 4) > 1
    assert backlog_per_slot(20, 0, 0, 4) == 5.0
