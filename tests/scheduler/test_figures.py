"""The figures for CloudWatch, put into moto's and read back; and that the heartbeat they tell of is a real run."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws
from sqlalchemy import Engine, text

from runner.authoring.spec import DagSpec, TaskSpec
from runner.rollout.cloud import Cloud, group_name
from runner.scheduler.figures import NAMESPACE, Figures
from runner.scheduler.main import _leaders, register_builtin
from runner.settings import Settings
from runner.state import bundles, nodes, transitions

TAGS = {"Scaling": "target-tracking", "MaxWorkers": "8", "Slots": "4", "Queues": "default"}


@pytest.fixture
def figures(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Figures]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with engine.begin() as c:
        register_builtin(c)
    with mock_aws():
        template = {"ImageId": "ami-12c6146b"}
        boto3.client("ec2", "us-east-1").create_launch_template(
            LaunchTemplateName="template", LaunchTemplateData=template
        )
        boto3.client("autoscaling", "us-east-1").create_auto_scaling_group(
            AutoScalingGroupName=group_name("test", "worker", "default"),
            MinSize=0,
            MaxSize=9,
            DesiredCapacity=0,
            AvailabilityZones=["us-east-1a"],
            LaunchTemplate={"LaunchTemplateName": "template"},
            Tags=[{"Key": k, "Value": v, "PropagateAtLaunch": False} for k, v in TAGS.items()],
        )
        yield Figures(engine, Settings(env="test", region="us-east-1"), cloud=lambda: Cloud("us-east-1"))


def look(figures: Figures) -> None:
    with figures._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        figures.look(c)


def sums(name: str, **dimensions: str) -> float | None:
    """What an alarm would see: the sum over the last minutes, None without a figure."""
    now = dt.datetime.now(dt.UTC)
    found = boto3.client("cloudwatch", "us-east-1").get_metric_statistics(
        Namespace=NAMESPACE,
        MetricName=name,
        Dimensions=[{"Name": k, "Value": v} for k, v in dimensions.items()],
        StartTime=now - dt.timedelta(minutes=10),
        EndTime=now + dt.timedelta(minutes=1),
        Period=60,
        Statistics=["Sum"],
    )["Datapoints"]
    return sum(d["Sum"] for d in found) if found else None


def work(engine: Engine, node: str) -> int:
    """The node does what is on its own queue; how many tasks that was."""
    with engine.begin() as c:
        claims = []
        for message in transitions.dispatch(c):
            claim = transitions.claim(c, message.task_instance, message.attempt, node_id=node, lease_seconds=60)
            claims += [claim] if claim else []
        transitions.finish(c, [transitions.Outcome(x.task_instance, x.token, "success") for x in claims])
    return len(claims)


def test_the_heartbeat_is_a_run_on_a_node_and_its_absence_is_zero(figures: Figures, engine: Engine) -> None:
    # Given a worker; the first look has nothing to tell and starts a run on its own queue
    with engine.begin() as c:
        queues = ("default", nodes.queue_of("w1"))
        nodes.register(c, nodes.NodeInfo("w1", "worker", "default", "r1", "boot", 4, queues))
    look(figures)
    assert sums("Heartbeat", Env="test") == 0
    # When nobody does it, that stays so; when the worker does, the next look tells of it
    look(figures)
    assert sums("Heartbeat", Env="test") == 0
    assert work(engine, "w1") == 2
    look(figures)
    assert sums("Heartbeat", Env="test") == 2
    with engine.connect() as c:
        queues_used = set(c.execute(text("SELECT queue FROM task_instance")).scalars())
    assert queues_used == {"node.w1"}


def test_an_empty_fleet_is_well_as_long_as_nothing_waits(figures: Figures, engine: Engine) -> None:
    look(figures)
    assert sums("Heartbeat", Env="test") == 1
    assert sums("BacklogPerSlot", Env="test", Pool="default") == 0
    # When a task waits and there is nobody to take it, it is not, and target tracking has a reason to act
    with engine.begin() as c:
        spec = DagSpec(dag_id="d", tasks=tuple(TaskSpec(task_id=f"t{i}") for i in range(20)))
        bundles.register_and_activate(c, version="v1", name="b", url="", size=0, specs=[spec], who="test")
        assert transitions.create_run(c, "d", dt.datetime(2026, 3, 1, tzinfo=dt.UTC))
    look(figures)
    assert sums("Heartbeat", Env="test") == 1
    assert sums("BacklogPerSlot", Env="test", Pool="default") == 5


def test_they_are_published_where_it_is_asked_for(engine: Engine) -> None:
    def names(**values: Any) -> list[str]:
        return [leader.name for leader in _leaders(engine, Settings(**values))]

    assert names(cloudwatch=True) == []  # not in a cloud
    assert names(instance_id="i-1") == ["autoscale"]
    assert names(instance_id="i-1", cloudwatch=True) == ["autoscale", "figures"]
