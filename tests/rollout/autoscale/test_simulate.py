"""The replay: loads read and made up, what policies do with them, and that the arithmetic is right."""

from __future__ import annotations

import datetime as dt
import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.rollout.autoscale import load
from runner.rollout.autoscale.load import SYNTHETIC, Task, read, synthetic, write
from runner.rollout.autoscale.policies import parse
from runner.rollout.autoscale.policy import Limits
from runner.rollout.autoscale.simulate import Machine, Result, simulate
from runner.settings import UsageError

LIMITS = Limits(0, 8, 4, cooldown_seconds=300)


def replay(tasks: list[Task], policy: str, boot: float = 60.0, limits: Limits = LIMITS) -> Result:
    return simulate(tasks, parse(policy, limits), Machine(limits.slots, boot), tail_seconds=900)


def test_a_fixed_fleet_by_hand() -> None:
    # Given one node of four slots and six tasks of ten seconds at once, and one much later
    tasks = [Task(0.0, 10.0)] * 6 + [Task(100.5, 10.0)]
    found = replay(tasks, "fixed:1")
    # Then four begin at once, two wait for ten seconds, and the last does not wait
    assert found.waits == [0.0] * 5 + [10.0, 10.0]
    assert (found.wait(50), found.wait(100)) == (0.0, 10.0)
    assert found.node_hours == pytest.approx(found.seconds / 3600)
    assert found.utilization == pytest.approx(70 / (found.seconds * 4))
    assert found.busy_picked == 0 and found.peak == found.launched == 1


def test_a_burst_on_nothing() -> None:
    # Given 500 tasks of ten seconds on an empty pool of up to eight nodes that boot in a minute
    tasks = [Task(0.0, 10.0)] * 500
    found = replay(tasks, "sluice")
    # Then all eight are asked for at once: the wait is the boot and what 32 slots cannot do at once
    assert found.peak == found.launched == 8
    assert found.wait(100) == pytest.approx(60 + 15 * 10, abs=3)
    # and they are gone after the cool-down, never with a task on them
    last = 60 + 16 * 10
    assert found.node_hours * 3600 == pytest.approx(8 * (last + 300), rel=0.05)
    assert found.timeline[-1].nodes == 0 and found.busy_picked == 0
    # Beside it a fleet of that size that waits all day, and one that CPU scales from one node
    assert replay(tasks, "fixed:8").node_hours > found.node_hours
    assert replay(tasks, "cpu:60").wait(50) > found.wait(50)


def test_the_synthetic_loads_are_the_same_each_time_and_all_of_their_tasks_are_done() -> None:
    for name in SYNTHETIC:
        tasks = synthetic(name)
        assert tasks == synthetic(name) and tasks != synthetic(name, 1)
        assert all(a.ready_at <= b.ready_at for a, b in itertools.pairwise(tasks))
    found = replay(synthetic("burst"), "sluice")
    assert len(found.waits) == len(synthetic("burst"))


@given(
    st.lists(st.tuples(st.floats(0, 600), st.floats(0, 120)), min_size=1, max_size=40),
    st.integers(0, 2),
    st.sampled_from(["sluice", "cpu:50", "backlog:0.5", "fixed:2"]),
)
@settings(max_examples=20, deadline=None)
def test_whatever_the_load_every_task_runs_once_within_the_bounds(
    made: list[tuple[float, float]], minimum: int, policy: str
) -> None:
    tasks = sorted((Task(at, seconds) for at, seconds in made), key=lambda t: t.ready_at)
    found = replay(tasks, policy, 30.0, Limits(minimum, 4, 2))
    assert len(found.waits) == len(tasks) and found.waits[0] >= 0
    assert found.peak <= 4 and min(m.nodes for m in found.timeline) >= (0 if policy != "sluice" else minimum)
    assert found.node_hours * 3600 * 2 >= sum(t.seconds for t in tasks) * 0.999
    if policy == "sluice":
        assert found.busy_picked == 0 and found.timeline[-1].nodes == minimum


def test_a_load_comes_back_as_it_was_written() -> None:
    noon = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    file = io.StringIO()
    assert write(file, [("cpu", noon + dt.timedelta(seconds=1.5), 2.0), ("default", noon, 0.25)]) == 2
    assert file.getvalue().splitlines()[1] == "cpu,2026-03-01T10:00:01.500Z,2.000"
    file.seek(0)
    assert read(file, "x") == [Task(0.0, 0.25, "default"), Task(1.5, 2.0, "cpu")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no column queue, ready_at, seconds"),
        ("queue,ready_at\n", "no column seconds"),
        ("queue,ready_at,seconds\n", "holds no task"),
        ("queue,ready_at,seconds\nd,0,1\nd,soon,1\n", "line 3: no task is ready at 'soon' for '1' seconds"),
        ("queue,ready_at,seconds\nd,0,-1\n", "line 2"),
        ("queue,ready_at,seconds\nd,0\n", "line 2"),
        ("queue,ready_at,seconds\nd,nan,1\n", "line 2"),
    ],
)
def test_a_file_that_is_no_load(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="x") as e:
        read(io.StringIO(text), "x")
    assert said in e.value.message


@pytest.mark.parametrize(
    "name", ["", "magic", "fixed", "fixed:0", "cpu:hot", "cpu:-1", "sluice:size=3", "sluice:min=9"]
)
def test_a_policy_that_is_none(name: str) -> None:
    with pytest.raises(UsageError) as e:
        parse(name, LIMITS)
    assert "fixed:4" in e.value.hint


def test_a_policy_with_its_own_numbers() -> None:
    assert parse("sluice:cooldown=60,max=3", LIMITS).limits == Limits(0, 3, 4, 60.0)  # type: ignore[attr-defined]
    assert load.COLUMNS == ("queue", "ready_at", "seconds")
