"""An emulated AWS with lifecycle hooks, a metadata service, and an agent whose service is a stub."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sqlalchemy import Engine, text

from runner.agent.child import ChildService, ChildSupervisor
from runner.agent.main import Agent
from runner.authoring.spec import DagSpec, TaskSpec
from runner.localcloud import process
from runner.localcloud.cloud import Cloud
from runner.localcloud.engines import free_port
from runner.localcloud.metadata import Server
from runner.localcloud.state import LocalState
from runner.settings import Settings
from runner.state import bundles, nodes, queries, transitions

STUB = Path(__file__).with_name("stub_service.py")
CLOCK_RATE = 30  # hooks run out so many times faster than they say


def eventually(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalState]:
    home, port = tmp_path_factory.mktemp("aws"), free_port()
    argv = [sys.executable, "-m", "runner.localcloud.aws", "--port", str(port), "--clock-rate", str(CLOCK_RATE)]
    process.start(argv, dict(os.environ), home / "aws.log", home / "aws.pid")
    state = LocalState(aws_endpoint=f"http://127.0.0.1:{port}")

    def answers() -> bool:
        assert process.alive(home / "aws.pid"), (home / "aws.log").read_text()
        try:
            with urllib.request.urlopen(f"{state.aws_endpoint}/_sluice/ready", timeout=1) as r:
                return bool(r.status == 200)
        except OSError:
            return False

    eventually(answers, 60)
    yield state
    process.stop(home / "aws.pid", grace=2)


class Aws:
    """One autoscaling group with one instance and both hooks."""

    def __init__(self, state: LocalState, name: str) -> None:
        self.name = name
        self.asg: Any = boto3.client("autoscaling")
        ec2: Any = boto3.client("ec2")
        ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData={"ImageId": "ami-12c6146b"})
        hooks: list[Any] = [
            {
                "LifecycleHookName": hook,
                "LifecycleTransition": f"autoscaling:EC2_INSTANCE_{transition}",
                "HeartbeatTimeout": 3600,
                "DefaultResult": "ABANDON",
            }
            for hook, transition in (("launch", "LAUNCHING"), ("terminate", "TERMINATING"))
        ]
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=3,
            DesiredCapacity=1,
            AvailabilityZones=["us-east-1a"],
            LaunchTemplate={"LaunchTemplateName": name, "Version": "1"},
            LifecycleHookSpecificationList=hooks,
        )
        found = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"][0]
        self.instance = str(found["Instances"][0]["InstanceId"])
        self.cloud = Cloud(state, full_seconds=0.0)
        self.cloud.refresh(full=True)
        self.server = Server(self)
        self.server.serve()

    # what the metadata service asks, fresh at every request
    account, region = "123456789012", "us-east-1"

    def get(self, instance_id: str) -> Any:
        return self.cloud.get(instance_id)

    def lifecycle_state(self, instance_id: str) -> str:
        found = self.asg.describe_auto_scaling_instances(InstanceIds=[instance_id])["AutoScalingInstances"]
        return found[0]["LifecycleState"] if found else ""

    def user_data(self, instance_id: str) -> bytes:
        return b""

    @property
    def state(self) -> str:
        return self.lifecycle_state(self.instance)

    @property
    def desired(self) -> int:
        found = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"]
        return int(found[0]["DesiredCapacity"])

    @property
    def imds_url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/{self.instance}"

    def set_terminate_timeout(self, seconds: float) -> None:
        """Real seconds, not the emulator's fast ones."""
        self.asg.put_lifecycle_hook(
            AutoScalingGroupName=self.name,
            LifecycleHookName="terminate",
            LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
            HeartbeatTimeout=round(seconds * CLOCK_RATE),
            DefaultResult="ABANDON",
        )

    def terminate(self) -> None:
        self.asg.terminate_instance_in_auto_scaling_group(InstanceId=self.instance, ShouldDecrementDesiredCapacity=True)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.asg.delete_auto_scaling_group(AutoScalingGroupName=self.name, ForceDelete=True)


@pytest.fixture
def aws(emulator: LocalState, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Aws]:
    for name, value in emulator.environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    aws = Aws(emulator, tmp_path.name)
    yield aws
    aws.close()


class Node:
    """One agent under test and the database it looks at."""

    def __init__(self, url: str, engine: Engine, home: Path, **settings: Any) -> None:
        home.mkdir(exist_ok=True)
        self.url, self.engine, self.home = url, engine, home
        self.settings = Settings(
            database_url=url,
            home=home,
            **{"node_id": "n1", "drain_seconds": 60, **settings},
        )
        self.agent = self.new_agent()

    def new_agent(self) -> Agent:
        agent = Agent(self.settings, self.engine)
        assert isinstance(agent.supervisor, ChildSupervisor)
        agent.supervisor._service = self.new_service()
        return agent

    @property
    def service(self) -> ChildService:
        supervisor = self.agent.supervisor
        assert isinstance(supervisor, ChildSupervisor)
        return supervisor._service

    def new_service(self) -> ChildService:
        env = {**os.environ, "SLUICE_HOME": str(self.home), "SLUICE_DATABASE_URL": self.url}
        env["SLUICE_NODE_ID"] = self.settings.node_id
        argv = [sys.executable, str(STUB), self.settings.role]
        return ChildService(argv, env, self.home / "log" / "stub.log", self.home / "stub.pid")

    def row(self) -> queries.NodeRow | None:
        with self.engine.connect() as c:
            return queries.node(c, self.settings.node_id)

    @property
    def state(self) -> str:
        row = self.row()
        return row.state if row else ""

    def until(self, check: Callable[[], Any], seconds: float = 10.0) -> Any:
        """Let the agent turn until something holds."""

        def turned() -> Any:
            self.agent.turn()
            return check()

        return eventually(turned, seconds)

    def cordon(self, seconds: float = 60.0) -> None:
        with self.engine.begin() as c:
            assert nodes.cordon(c, self.settings.node_id, reason="test", by="test", deadline_seconds=seconds)

    def lease(self) -> transitions.Claim:
        """Give the node a running task."""
        spec = DagSpec(dag_id="d", tasks=(TaskSpec(task_id="t"),))
        with self.engine.begin() as c:
            bundles.register_and_activate(c, version="v", name="d", url="x", size=1, specs=[spec], who="test")
            transitions.create_run(c, "d", dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
        with self.engine.begin() as c:
            (message,) = transitions.dispatch(c)
            claim = transitions.claim(
                c, message.task_instance, message.attempt, node_id=self.settings.node_id, lease_seconds=300
            )
        assert claim is not None
        return claim

    def finish(self, claim: transitions.Claim) -> None:
        with self.engine.begin() as c:
            transitions.finish(c, [transitions.Outcome(claim.task_instance, claim.token, "success")])

    def task(self) -> tuple[str, int, int]:
        with self.engine.connect() as c:
            row = c.execute(text("SELECT state, interruptions, tries FROM task_instance")).one()
            return row.state, row.interruptions, row.tries

    def starts(self) -> list[int]:
        path = self.home / "starts"
        return [int(x) for x in path.read_text().split()] if path.exists() else []

    def close(self) -> None:
        (self.home / "deaf").unlink(missing_ok=True)
        eventually(lambda: self.service.stop(0.5))


@pytest.fixture
def make_node(database_url: str, engine: Engine, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(**settings: Any) -> Node:
        made.append(Node(database_url, engine, tmp_path / "home", **settings))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """A node outside any cloud."""
    return make_node()


@pytest.fixture
def cloud_node(aws: Aws, make_node: Callable[..., Node]) -> Node:
    """A node that is the group's instance."""
    return make_node(node_id=aws.instance, instance_id=aws.instance, imds_url=aws.imds_url)
