"""The agent's decisions as data."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.agent.decide import BOOT_SECONDS, STUCK_SECONDS, Act, View, decide

UP: dict[str, Any] = {"role": "worker", "node": "ready", "alive": True, "ready": True}


@pytest.mark.parametrize(
    ("seen", "acts"),
    [
        # serving
        ({}, []),
        ({"alive": False, "ready": False}, [Act.START]),
        ({"node": "", "alive": False, "ready": False}, [Act.START]),
        ({"launching": True}, [Act.CONTINUE]),
        ({"launching": True, "ready": False}, []),
        ({"launching": True, "ready": False, "boot_age": BOOT_SECONDS + 1}, [Act.ABANDON]),
        ({"launching": True, "boot_age": BOOT_SECONDS + 1}, [Act.CONTINUE]),
        # told to go
        ({"terminating": True}, [Act.CORDON]),
        ({"leaving": True, "alive": False}, [Act.CORDON]),
        ({"node": "", "terminating": True}, [Act.STOP]),
        ({"node": "", "terminating": True, "alive": False}, [Act.COMPLETE]),
        ({"node": "", "leaving": True, "alive": False}, []),
        # draining
        ({"node": "draining", "leases": 2, "seconds_left": 5.0}, []),
        ({"node": "draining", "leases": 2, "seconds_left": 0.0}, [Act.STOP]),
        ({"node": "draining", "leases": 2, "alive": False}, [Act.HAND_ON, Act.DRAINED]),
        ({"node": "draining", "alive": False}, [Act.DRAINED]),
        ({"node": "draining", "seconds_left": 5.0}, []),
        ({"node": "draining", "seconds_left": 5.0, "drain_age": STUCK_SECONDS + 1}, [Act.DRAINED]),
        ({"node": "draining", "role": "scheduler"}, [Act.STOP]),
        ({"node": "draining", "role": "web", "alive": False}, [Act.DRAINED]),
        # drained
        ({"node": "drained"}, [Act.STOP]),
        ({"node": "drained", "alive": False}, []),
        ({"node": "drained", "alive": False, "terminating": True}, [Act.COMPLETE]),
        ({"node": "gone", "alive": False, "terminating": True}, [Act.COMPLETE]),
        ({"node": "drained", "alive": False, "terminating": True, "others": True}, []),
        ({"node": "drained", "alive": False, "after_drain": "terminate"}, [Act.TERMINATE]),
        ({"node": "drained", "alive": False, "after_drain": "terminate", "others": True}, []),
        ({"node": "gone", "alive": False, "after_drain": "terminate"}, []),
        ({"node": "draining", "leases": 1, "resting": True}, [Act.STOP]),
        # changing to another release in place: the old service
        ({"superseded": True}, []),
        ({"superseded": True, "alive": False}, [Act.START]),
        ({"superseded": True, "alive": False, "installed": False}, [Act.START, Act.INSTALL]),
        ({"superseded": True, "node": "", "alive": False}, []),
        ({"superseded": True, "successor": True}, [Act.CORDON]),
        ({"superseded": True, "node": "drained", "alive": False}, [Act.RELIEVED]),
        # the new one
        ({"ordered": True, "installed": False, "node": "", "alive": False}, [Act.INSTALL]),
        ({"ordered": True, "node": "", "alive": False, "current": False}, [Act.START]),
        ({"ordered": True, "current": False, "others": True}, []),
        ({"ordered": True, "current": False}, [Act.SWITCH]),
        ({"ordered": True}, []),
        # one without tasks
        ({"role": "scheduler", "superseded": True, "installed": False}, [Act.INSTALL]),
        ({"role": "scheduler", "superseded": True}, [Act.STOP]),
        ({"role": "scheduler", "superseded": True, "alive": False}, [Act.SWITCH]),
        # no service of ours
        ({"role": "monitoring", "node": "", "alive": False, "launching": True}, [Act.CONTINUE]),
        ({"role": "monitoring", "node": "", "alive": False, "terminating": True}, [Act.COMPLETE]),
        ({"role": "monitoring", "node": "", "alive": False, "leaving": True}, []),
        # the agent itself is told to stop
        ({"told_to_stop": True, "owned": False}, [Act.EXIT]),
        ({"told_to_stop": True}, [Act.STOP]),
        ({"told_to_stop": True, "alive": False}, [Act.EXIT]),
        # the database is away
        ({"node": None, "alive": False}, []),
        ({"node": None, "terminating": True}, []),
        # it has no schema yet
        ({"role": "scheduler", "node": None, "alive": False, "empty": True}, [Act.CREATE_SCHEMA]),
        ({"node": None, "alive": False, "empty": True}, []),
        ({"role": "web", "node": None, "alive": False, "empty": True}, []),
    ],
)
def test_what_is_done(seen: dict[str, Any], acts: list[Act]) -> None:
    assert decide(View(**{**UP, **seen})) == acts


views = st.builds(
    View,
    role=st.sampled_from(["worker", "scheduler", "web"]),
    node=st.sampled_from([None, "", "booting", "ready", "draining", "drained", "gone"]),
    alive=st.booleans(),
    ready=st.booleans(),
    leases=st.integers(0, 3),
    seconds_left=st.none() | st.floats(-100, 1000),
    drain_age=st.floats(0, 1000),
    terminating=st.booleans(),
    leaving=st.booleans(),
    launching=st.booleans(),
    boot_age=st.floats(0, 2 * BOOT_SECONDS),
    told_to_stop=st.booleans(),
    owned=st.booleans(),
    resting=st.just(False),
    after_drain=st.sampled_from(["", "terminate", "replace"]),
    others=st.booleans(),
    ordered=st.booleans(),
    superseded=st.booleans(),
    successor=st.booleans(),
    installed=st.booleans(),
    current=st.booleans(),
    empty=st.booleans(),
)


@given(views)
def test_a_worker_with_tasks_and_time_left_is_never_stopped(view: View) -> None:
    if view.role == "worker" and view.node == "draining" and view.leases and (view.seconds_left or 1) > 0:
        assert view.told_to_stop or Act.STOP not in decide(view)


@given(views)
def test_a_machine_is_given_away_only_when_nothing_runs_on_it(view: View) -> None:
    acts = decide(view)
    if Act.COMPLETE in acts or Act.TERMINATE in acts:
        assert not view.alive and not view.others and view.node in ("", "drained", "gone")
        assert view.terminating if Act.COMPLETE in acts else view.after_drain


@given(views)
def test_a_service_is_started_only_on_a_node_that_may_serve(view: View) -> None:
    if Act.START in decide(view):
        assert not view.alive and view.node in ("", "booting", "ready")
        assert not (view.terminating or view.leaving or view.told_to_stop)


def test_a_web_node_that_leaves_answers_for_a_moment_longer() -> None:
    for node in ("draining", "drained"):
        assert decide(View("web", node, True, drain_age=1.0, terminating=True)) == []
        assert decide(View("web", node, True, drain_age=6.0, terminating=True)) == [Act.STOP]
    assert decide(View("scheduler", "draining", True, drain_age=1.0)) == [Act.STOP]
