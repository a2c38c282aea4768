"""Instances of the emulated EC2 become nodes, and stop being nodes when they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.localcloud import machines, node, process, state
from runner.localcloud.cloud import Cloud
from runner.localcloud.engines import free_port
from runner.localcloud.releases import Releases
from runner.rollout.sign import SecretKey
from runner.telemetry.alive import birth

KEY = SecretKey.generate()
USER_DATA = f"#cloud-config\nwrite_files:\n- path: {node.NODE_ENV}\n  content: |\n      SLUICE_ROLE=worker\n"

# Stands in for the agent: says from which release it runs, and leaves a child that no process tree leads to.
AGENT = """
import json, os, subprocess, sys, time, who
lonely = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
lonely += " start_new_session=True, stdout=-3, stderr=-3).pid)"
orphan = int(subprocess.run([sys.executable, "-c", lonely], capture_output=True, text=True, check=True).stdout)
env = {k: v for k, v in os.environ.items() if k.startswith(("SLUICE_", "AWS_"))}
told = {"pid": os.getpid(), "orphan": orphan, "release": who.release, "file": who.__file__, "env": env}
with open("part", "w") as f:
    json.dump(told, f)
os.replace("part", "agent.json")
while not os.path.exists("end"):
    time.sleep(0.05)
code = int(open("end").read())
os.remove("end")
sys.exit(code)
"""


class Bench:
    """A supervisor of the machines, in a thread or as the daemon it is, and what it wrote."""

    def __init__(self, home: Path, cloud: state.LocalState) -> None:
        self.home = home
        self.script = home / "agent.py"
        self.script.write_text(AGENT)
        state.save(cloud, home)
        self.pidfile = home / "machines.pid"
        self.machines: machines.Machines | None = None
        self._end = threading.Event()
        self._thread = threading.Thread()

    def start(self) -> machines.Machines:
        self.machines = machines.Machines(self.home, [sys.executable, "-B", str(self.script)])
        self.machines.start()
        self._thread = threading.Thread(target=machines.run, args=(self.machines, 0.1, self._end))
        self._thread.start()
        return self.machines

    def start_daemon(self) -> None:
        argv = [sys.executable, "-m", "runner.localcloud.machines", "--state-dir", str(self.home), "--interval", "0.1"]
        argv += ["--agent-command", f"{sys.executable} -B {self.script}"]
        process.start(argv, dict(os.environ), self.home / "machines.log", self.pidfile)

    def stop(self) -> None:
        process.stop(self.pidfile, grace=5)
        if self.machines is not None:
            self._end.set()
            self._thread.join()
            self.machines.close()

    def node(self, instance: str) -> Path:
        return self.home / "nodes" / instance

    def console(self, instance: str) -> str:
        log = self.node(instance) / "console.log"
        return log.read_text() if log.exists() else ""

    def agent(self, instance: str) -> dict[str, Any] | None:
        """What the agent that runs now said; None while there is none."""
        told = self.node(instance) / "agent.json"
        found = process.read(node.pidfile(self.node(instance)))
        answer: dict[str, Any] = json.loads(told.read_text()) if told.exists() else {}
        return answer if found is not None and answer.get("pid") == found.pid else None


@pytest.fixture
def bench(tmp_path: Path, aws: Any) -> Iterator[Bench]:
    bench = Bench(tmp_path, aws.state)
    yield bench
    bench.stop()
    machines.kill_all(tmp_path)


def test_web_nodes_that_boot_at_once_have_ports_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a port that nobody listens on yet
    wanted = free_port()
    monkeypatch.setattr(node, "WEB_PORT", wanted)
    host = node.Host(tmp_path, "", Releases(state.LocalState(aws_endpoint="http://127.0.0.1:1"), tmp_path))
    # Then the first has it, the second has another, and the third gets it once the first is off
    assert host.take_web_port("i-1") == wanted
    assert host.take_web_port("i-1") == wanted  # it was rebooted
    assert host.take_web_port("i-2") not in (0, wanted)
    host.give_back_web_port("i-1")
    assert host.take_web_port("i-3") == wanted
    # And nobody has one that another program listens on
    host.give_back_web_port("i-3")
    with socket.create_server(("127.0.0.1", wanted)):
        assert host.take_web_port("i-4") != wanted


def test_an_instance_boots_runs_its_own_release_and_dies_with_everything_on_it(
    bench: Bench, aws: Any, eventually: Callable[..., Any]
) -> None:
    # Given a group of one, whose release is published
    bench.start()
    aws.put_release("abc123")
    aws.group("life")
    (instance,) = aws.instances("life")
    # Then its agent runs that release from the node's own directory, with the user data's settings
    agent = eventually(lambda: bench.agent(instance), what="agent runs")
    assert agent["release"] == "abc123"
    assert agent["file"] == str(bench.node(instance) / "release/abc123/site/who.py")
    env = agent["env"]
    assert (env["SLUICE_ROLE"], env["SLUICE_POOL"], env["SLUICE_SLOTS"]) == ("worker", "cpu", "3")
    assert env["SLUICE_NODE_ID"] == env["SLUICE_INSTANCE_ID"] == instance
    assert env["SLUICE_HOME"] == str(bench.node(instance))
    assert env["SLUICE_RELEASE"] == "abc123"
    assert env["AWS_ENDPOINT_URL"] == aws.state.aws_endpoint
    imds = state.load(bench.home).imds_port
    assert env["SLUICE_IMDS_URL"] == f"http://127.0.0.1:{imds}/{instance}"
    # When the instance is terminated
    aws.ec2.terminate_instances(InstanceIds=[instance])
    # Then agent and orphan are gone, and the console says so
    eventually(lambda: birth(agent["pid"]) is None, what="agent killed")
    eventually(lambda: birth(agent["orphan"]) is None, what="orphan killed")
    eventually(lambda: "power off: terminated; 2 processes killed" in bench.console(instance))


def test_nodes_outlive_their_supervisor_and_are_adopted_not_started_twice(
    bench: Bench, aws: Any, eventually: Callable[..., Any]
) -> None:
    # Given two running nodes and a supervisor that is killed
    aws.put_release("abc123")
    aws.group("adopt", size=2)
    stays, goes = aws.instances("adopt")
    bench.start_daemon()
    before = eventually(lambda: bench.agent(stays))
    lost = eventually(lambda: bench.agent(goes))
    port = state.load(bench.home).imds_port
    supervisor = process.read(bench.pidfile)
    assert supervisor is not None
    supervisor.signal(signal.SIGKILL)
    process.wait_gone(supervisor, 5)
    # When one instance ends while nobody looks, and the supervisor starts again
    aws.ec2.terminate_instances(InstanceIds=[goes])
    assert birth(lost["pid"]) is not None
    bench.start_daemon()
    # Then the one that still runs is adopted as it is, at the metadata address it knows, and the other is killed
    eventually(lambda: "adopted" in bench.console(stays))
    assert bench.agent(stays) == before
    assert state.load(bench.home).imds_port == port
    eventually(lambda: birth(lost["pid"]) is None and birth(lost["orphan"]) is None)


def test_an_agent_that_dies_is_started_again_and_one_that_is_done_is_not(
    bench: Bench, aws: Any, eventually: Callable[..., Any]
) -> None:
    # Given a running node
    aws.put_release("abc123")
    aws.group("restart")
    (instance,) = aws.instances("restart")
    bench.start()
    first = eventually(lambda: bench.agent(instance))
    # When its agent is killed
    os.kill(first["pid"], signal.SIGKILL)
    # Then another takes its place, and the service that the first had started goes on
    second = eventually(lambda: (a := bench.agent(instance)) and a["pid"] != first["pid"] and a)
    assert birth(first["orphan"]) is not None
    assert "agent killed by SIGKILL; starting again in 1 s" in bench.console(instance)
    # When that one ends with exit status 0, it has nothing more to do
    (bench.node(instance) / "end").write_text("0")
    eventually(lambda: "agent ended by itself" in bench.console(instance))
    # When the instance is rebooted, nothing of it is left, and it boots again
    imds = state.load(bench.home).imds_port
    _put(f"http://127.0.0.1:{imds}/admin/{instance}/reboot")
    third = eventually(lambda: (a := bench.agent(instance)) and a["pid"] != second["pid"] and a)
    assert third["release"] == "abc123"
    assert birth(first["orphan"]) is None


def test_a_node_waits_for_its_tag_and_its_release(bench: Bench, aws: Any, eventually: Callable[..., Any]) -> None:
    # Given an instance with an empty release tag
    aws.group("wait", release="")
    (instance,) = aws.instances("wait")
    bench.start()
    eventually(lambda: "waiting: the tag Release is empty" in bench.console(instance))
    # When the tag names a release that is not there yet, it waits for that
    aws.ec2.create_tags(Resources=[instance], Tags=[{"Key": "Release", "Value": "late77"}])
    eventually(lambda: "waiting: release late77 is not in the artifacts yet" in bench.console(instance))
    # When it is published, the node comes up
    aws.put_release("late77")
    assert eventually(lambda: bench.agent(instance))["release"] == "late77"


@pytest.mark.parametrize(
    ("user_data", "archive", "said"),
    [
        ("#!/bin/sh\necho hi\n", None, "user data is not a #cloud-config"),
        ("#cloud-config\nwrite_files: [\n", None, "user data cannot be read"),
        (None, b"not a tarball", "release broken1 cannot be unpacked"),
        (f"{USER_DATA}      SLUICE_RELEASE_KEY={KEY.public}\n", None, "release broken1 is refused: it is not signed"),
    ],
)
def test_a_machine_that_cannot_boot_says_why_and_abandons_its_launch(
    bench: Bench, aws: Any, eventually: Callable[..., Any], user_data: str | None, archive: bytes | None, said: str
) -> None:
    # Given a group with a launch hook whose machines cannot come up
    aws.put_release("broken1", archive)
    aws.group("broken", release="broken1", user_data=user_data or aws.user_data, hook=True)
    (instance,) = aws.instances("broken")
    assert aws.lifecycle(instance) == "Pending:Wait"
    # When it boots
    bench.start()
    # Then the console says why, and the launch is abandoned: the group throws the instance away
    eventually(lambda: "launch hook launch: ABANDON" in bench.console(instance))
    assert f"boot failed: {said}" in bench.console(instance)
    assert bench.agent(instance) is None
    eventually(lambda: aws.lifecycle(instance) in ("", "Terminated"))
    # Do not let the group try again for ever
    aws.asg.update_auto_scaling_group(AutoScalingGroupName="broken", DesiredCapacity=0)


def test_a_spot_notice_runs_out(bench: Bench, aws: Any, eventually: Callable[..., Any]) -> None:
    # Given a running node
    aws.put_release("abc123")
    aws.group("spot")
    (instance,) = aws.instances("spot")
    bench.start()
    agent = eventually(lambda: bench.agent(instance))
    # When a notice of half a second is posted
    imds = state.load(bench.home).imds_port
    _put(f"http://127.0.0.1:{imds}/admin/{instance}/spot", {"action": "terminate", "seconds": 0.5})
    # Then EC2 takes the machine away
    eventually(lambda: birth(agent["pid"]) is None)
    assert aws.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]["State"]["Name"] in (
        "terminated",
        "shutting-down",
    )


def test_an_api_that_is_away_kills_nobody(bench: Bench, aws: Any, eventually: Callable[..., Any]) -> None:
    # Given a supervisor with one node up
    aws.put_release("abc123")
    aws.group("away")
    (instance,) = aws.instances("away")
    supervisor = bench.start()
    agent = eventually(lambda: bench.agent(instance))
    # When the API does not answer for a while
    healthy, supervisor.cloud = supervisor.cloud, Cloud(state.LocalState(aws_endpoint="http://127.0.0.1:9"))
    time.sleep(0.4)
    supervisor.cloud = healthy
    # Then the node goes on
    assert bench.agent(instance) == agent


def _put(url: str, body: dict[str, Any] | None = None) -> None:
    request = urllib.request.Request(url, data=json.dumps(body or {}).encode(), method="PUT")
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert answer.status == 200
