"""The agent with a real child process, a real database, lifecycle hooks and a metadata service."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from runner.agent import cloud, main
from runner.state import nodes, orders
from runner.telemetry.alive import birth

from .conftest import Aws, Node, eventually


def alive(pid: int) -> bool:
    return birth(pid) is not None


# --- outside a cloud ------------------------------------------------------------------------------------------


def test_the_service_is_started_and_restarted_when_it_dies(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.agent.service._FIRST_PAUSE_SECONDS", 0.1)
    node.agent = node.new_agent()
    # Given a running service
    node.until(lambda: node.state == "ready")
    (first,) = node.starts()
    # When it is killed
    os.kill(first, signal.SIGKILL)
    # Then another takes its place
    node.until(lambda: len(node.starts()) == 2)
    node.until(lambda: node.service.pid == node.starts()[1])


def test_a_service_that_fails_again_and_again_is_started_ever_more_slowly(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.agent.service._FIRST_PAUSE_SECONDS", 0.1)
    node.agent = node.new_agent()
    (node.home / "refuse").touch()
    began = time.monotonic()
    node.until(lambda: len(node.starts()) == 4)
    assert time.monotonic() - began > 0.1 + 0.2 + 0.4


def test_a_drain_waits_for_the_running_task_and_stops_the_service(node: Node) -> None:
    # Given a worker with a task
    node.until(lambda: node.state == "ready")
    claim = node.lease()
    # When it is told to drain
    node.cordon()
    for _ in range(10):
        node.agent.turn()
        time.sleep(0.02)
    # Then the task goes on
    assert node.state == "draining" and node.service.alive()
    # And when the task has ended, the worker is stopped, once, and stays down
    node.finish(claim)
    node.until(lambda: node.state == "drained" and not node.service.alive())
    for _ in range(5):
        node.agent.turn()
    assert len(node.starts()) == 1 and node.state == "drained"
    assert node.task() == ("success", 0, 1)


def test_a_worker_that_dies_while_draining_is_not_restarted_and_its_task_handed_on(node: Node) -> None:
    node.until(lambda: node.state == "ready")
    node.lease()
    node.cordon()
    node.agent.turn()
    os.kill(node.service.pid, signal.SIGKILL)
    node.until(lambda: node.state == "drained")
    assert node.task() == ("ready", 1, 0)  # interrupted, no retry used
    assert len(node.starts()) == 1


def test_at_the_deadline_a_deaf_worker_is_killed_and_its_task_handed_on(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "EXIT_SECONDS", 0.3)
    (node.home / "deaf").touch()
    node.until(lambda: node.state == "ready")
    node.lease()
    node.cordon(seconds=0.5)
    node.until(lambda: node.state == "drained")
    assert node.task() == ("ready", 1, 0)
    assert not alive(node.starts()[0])


def test_an_idle_worker_that_does_not_say_drained_does_not_hold_up_the_drain(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.agent.decide.STUCK_SECONDS", 0.2)
    (node.home / "quiet").touch()
    node.until(lambda: node.state == "ready")
    node.cordon()
    node.until(lambda: node.state == "drained")


def test_a_scheduler_is_stopped_at_once(make_node: Callable[..., Node]) -> None:
    node = make_node(role="scheduler")
    node.until(lambda: node.state == "ready")
    node.cordon()
    node.until(lambda: node.state == "drained" and not node.service.alive())


def test_a_child_of_the_agent_cannot_change_in_place_and_the_order_says_so(node: Node) -> None:
    node.until(lambda: node.state == "ready")
    with node.engine.begin() as c:
        orders.give(c, "n1", "r2", reason="roll 7", by="someone", drain_seconds=60)

    def error() -> str | None:
        with node.engine.connect() as c:
            found = orders.find(c, "n1")
        return found.error if found else None

    node.until(error)
    assert "in place" in str(error())
    assert node.state == "ready" and len(node.starts()) == 1


# --- in a cloud -----------------------------------------------------------------------------------------------


def test_the_launch_is_completed_once_the_service_is_ready(cloud_node: Node, aws: Aws) -> None:
    assert aws.state == "Pending:Wait"
    cloud_node.until(lambda: aws.state == "InService")
    assert cloud_node.state == "ready"


def test_a_service_that_never_gets_ready_gives_the_instance_back(
    cloud_node: Node, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.agent.decide.BOOT_SECONDS", 0.5)
    (cloud_node.home / "refuse").touch()
    assert cloud_node.agent.run() == 1
    eventually(lambda: aws.state == "")


def test_termination_waits_for_the_task_while_the_hook_is_kept_open(
    cloud_node: Node, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an instance in service with a task, and a terminate hook that lasts 2 s without heartbeats
    monkeypatch.setattr("runner.agent.lifecycle._LONGEST_BEAT_SECONDS", 0.5)
    aws.set_terminate_timeout(2.0)
    cloud_node.until(lambda: aws.state == "InService")
    claim = cloud_node.lease()
    # When the group terminates it
    aws.terminate()
    assert aws.state == "Terminating:Wait"
    cloud_node.until(lambda: cloud_node.state == "draining")
    # Then it waits longer than the hook lasts without heartbeats
    until = time.monotonic() + 2.7
    while time.monotonic() < until:
        cloud_node.agent.turn()
        time.sleep(0.2)
    assert aws.state == "Terminating:Wait" and cloud_node.service.alive()
    # And when the task has ended, the machine is given away
    cloud_node.finish(claim)
    cloud_node.until(lambda: cloud_node.state == "gone")
    eventually(lambda: aws.state == "")
    assert cloud_node.task() == ("success", 0, 1)


def test_a_spot_notice_drains_at_once_and_hands_on_what_does_not_end_in_time(
    cloud_node: Node, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "EXIT_SECONDS", 0.3)
    monkeypatch.setattr(cloud, "SPOT_MARGIN_SECONDS", 1.0)
    cloud_node.until(lambda: aws.state == "InService")
    cloud_node.lease()
    aws.server.notices.post(aws.instance, "terminate", 3.0)
    cloud_node.until(lambda: cloud_node.state == "draining", 2.0)
    row = cloud_node.row()
    assert row is not None and row.reason == "spot interruption" and 0 < (row.seconds_left or 0) < 2
    cloud_node.until(lambda: cloud_node.state == "drained", 5.0)
    assert cloud_node.task() == ("ready", 1, 0)


def test_a_node_that_is_to_be_terminated_ends_itself_with_its_place(cloud_node: Node, aws: Aws) -> None:
    # Given a node in service, and nobody but its agent who would end it
    cloud_node.until(lambda: aws.state == "InService")
    claim = cloud_node.lease()
    with cloud_node.engine.begin() as c:
        nodes.cordon(c, aws.instance, reason="scale-in", by="test", deadline_seconds=60, after="terminate")
    cloud_node.until(lambda: cloud_node.state == "draining")
    assert aws.state == "InService"
    # When its task has ended
    cloud_node.finish(claim)
    # Then it goes, and the group is smaller
    cloud_node.until(lambda: cloud_node.state == "gone")
    eventually(lambda: aws.state == "")
    assert aws.desired == 0
    assert cloud_node.task() == ("success", 0, 1)


@pytest.mark.parametrize("event", ["maintenance", "rebalance"])
def test_a_machine_that_will_not_last_is_replaced_in_time(cloud_node: Node, aws: Aws, event: str) -> None:
    cloud_node.until(lambda: aws.state == "InService")

    def retire(seconds: float) -> None:
        when = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
        found = [{"NotBefore": f"{when:%d %b %Y %H:%M:%S} GMT", "Code": "instance-retirement", "State": "active"}]
        aws.server.notices.announce(aws.instance, "events/maintenance/scheduled", json.dumps(found))

    # Given an event that is days away: there is time
    retire(86_400)
    for _ in range(3):
        cloud_node.agent.cloud._next_look = 0.0
        cloud_node.agent.turn()
    assert cloud_node.state == "ready"
    # When it comes near, or EC2 recommends to leave
    if event == "maintenance":
        retire(600)
    else:
        aws.server.notices.announce(aws.instance, "events/recommendations/rebalance", "{}")
    # Then the node drains and goes, and the group brings another
    cloud_node.until(lambda: cloud_node.state == "gone")
    with cloud_node.engine.connect() as c:
        why = c.execute(text("SELECT detail FROM event WHERE kind = 'node' AND state = 'draining'")).scalar_one()
    assert why.startswith(event)
    eventually(lambda: aws.state == "")
    assert aws.desired == 1


def test_a_monitoring_host_has_no_service_and_only_answers_the_hooks(make_node: Callable[..., Node], aws: Aws) -> None:
    node = make_node(role="monitoring", node_id=aws.instance, instance_id=aws.instance, imds_url=aws.imds_url)
    node.until(lambda: aws.state == "InService")
    assert node.row() is None and node.starts() == []
    aws.terminate()
    node.until(lambda: aws.state == "")


# --- restarts of the agent itself -----------------------------------------------------------------------------


def start_agent(node: Node) -> subprocess.Popen[bytes]:
    program = (
        "import sys; from runner.agent import main; from runner.settings import load\n"
        "from runner.agent import child\n"
        "Real = child.ChildService\n"
        "child.ChildService = lambda argv, *rest: Real([sys.executable, sys.argv[1], argv[-1]], *rest)\n"
        "sys.exit(main.run(load()))"
    )
    s = node.settings
    env = {
        **os.environ,
        "SLUICE_DATABASE_URL": node.url,
        "SLUICE_HOME": str(node.home),
        "SLUICE_NODE_ID": s.node_id,
        "SLUICE_INSTANCE_ID": s.instance_id,
        "SLUICE_IMDS_URL": s.imds_url,
    }
    stub = str(Path(__file__).with_name("stub_service.py"))
    with (node.home / "agent.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", program, stub], env=env, stdout=log, stderr=log)


def kill(agent: subprocess.Popen[bytes]) -> None:
    agent.kill()
    agent.wait()


def test_a_killed_agent_finds_its_service_and_goes_on_at_every_step(cloud_node: Node, aws: Aws) -> None:
    node = cloud_node
    with contextlib.ExitStack() as stack:
        # Given an agent that is killed once the service runs
        agent = start_agent(node)
        stack.callback(kill, agent)
        eventually(node.starts)
        kill(agent)
        # Then the next one answers the hook with the same service
        agent = start_agent(node)
        stack.callback(kill, agent)
        eventually(lambda: aws.state == "InService")
        claim = node.lease()
        # And one that is killed in mid-drain
        aws.terminate()
        eventually(lambda: node.state == "draining")
        kill(agent)
        node.finish(claim)
        # leaves it to the next to give the machine away
        agent = start_agent(node)
        stack.callback(kill, agent)
        eventually(lambda: aws.state == "")
        eventually(lambda: node.state == "gone")
        assert len(node.starts()) == 1 and not alive(node.starts()[0])


def test_told_to_stop_the_agent_stops_its_service_and_ends(node: Node) -> None:
    agent = start_agent(node)
    try:
        eventually(lambda: node.state == "ready")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(5) == 0
        assert not alive(node.starts()[0])
    finally:
        kill(agent)


def test_a_database_that_is_away_does_not_end_the_agent(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node()
    node.until(lambda: node.state == "ready")
    from runner.state import db

    away = db.connect(f"postgresql://x@/none?host={tmp_path}")
    there, node.agent.engine = node.agent.engine, away
    assert node.agent.turn()[0][1] == []
    node.agent.engine = there
    assert node.service.alive()
    away.dispose()
