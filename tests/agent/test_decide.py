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
        ({"spot": True, "alive": False}, [Act.CORDON]),
        ({"node": "", "terminating": True}, [Act.STOP]),
        ({"node": "", "terminating": True, "alive": False}, [Act.COMPLETE]),
        ({"node": "", "spot": True, "alive": False}, []),
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
        # the agent itself is told to stop
        ({"told_to_stop": True}, [Act.STOP]),
        ({"told_to_stop": True, "alive": False}, [Act.EXIT]),
        # the database is away
        ({"node": None, "alive": False}, []),
        ({"node": None, "terminating": True}, []),
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
    spot=st.booleans(),
    launching=st.booleans(),
    boot_age=st.floats(0, 2 * BOOT_SECONDS),
    told_to_stop=st.booleans(),
)


@given(views)
def test_a_worker_with_tasks_and_time_left_is_never_stopped(view: View) -> None:
    if view.role == "worker" and view.node == "draining" and view.leases and (view.seconds_left or 1) > 0:
        assert view.told_to_stop or Act.STOP not in decide(view)


@given(views)
def test_a_machine_is_given_away_only_when_nothing_runs_on_it(view: View) -> None:
    if Act.COMPLETE in decide(view):
        assert view.terminating and not view.alive and view.node in ("", "drained", "gone")


@given(views)
def test_a_service_is_started_only_on_a_node_that_may_serve(view: View) -> None:
    if Act.START in decide(view):
        assert not view.alive and view.node in ("", "booting", "ready")
        assert not (view.terminating or view.spot or view.told_to_stop)
