"""The edge to AWS, by the shape of moto's answers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws

from runner.rollout.cloud import Cloud, group_name
from runner.settings import SluiceError, UsageError

NAME = group_name("test", "worker", "default")


@pytest.fixture
def asg(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        boto3.client("ec2", "us-east-1").create_launch_template(
            LaunchTemplateName="template", LaunchTemplateData={"ImageId": "ami-12c6146b"}
        )
        client: Any = boto3.client("autoscaling", "us-east-1")
        for name, size in ((NAME, 2), (group_name("test", "scheduler", "scheduler"), 0)):
            client.create_auto_scaling_group(
                AutoScalingGroupName=name,
                MinSize=0,
                MaxSize=3,
                DesiredCapacity=size,
                AvailabilityZones=["us-east-1a"],
                LaunchTemplate={"LaunchTemplateName": "template"},
                Tags=[{"Key": "Release", "Value": "old", "PropagateAtLaunch": True}],
            )
        yield client


def test_a_group_is_read_with_its_instances_and_what_they_booted_with(asg: Any) -> None:
    cloud = Cloud("us-east-1")
    group = cloud.group(NAME)
    assert (group.desired, group.minimum, group.maximum, group.release) == (2, 0, 3, "old")
    assert [(i.lifecycle, i.release) for i in group.instances] == [("InService", "old")] * 2
    assert [g.name for g in cloud.groups("sluice-test-worker-")] == [NAME]


def test_the_tag_reaches_what_is_launched_after_it(asg: Any) -> None:
    cloud = Cloud("us-east-1")
    cloud.set_release(NAME, "new")
    cloud.set_desired(NAME, 3)
    group = cloud.group(NAME)
    assert group.release == "new" and group.desired == 3
    assert sorted(i.release for i in group.instances) == ["new", "old", "old"]


def test_ec2_is_asked_only_about_instances_that_are_new(asg: Any) -> None:
    ec2, asked = boto3.client("ec2", "us-east-1"), []
    ec2.meta.events.register("before-call.ec2.DescribeInstances", lambda **_: asked.append(1))
    cloud = Cloud("us-east-1", ec2=ec2)
    first = cloud.group(NAME)
    assert cloud.group(NAME) == first
    assert len(asked) == 1
    # One whose tag is not shown yet is asked about again
    late = [first.instances[0].instance_id]
    ec2.delete_tags(Resources=late, Tags=[{"Key": "Release"}])
    fresh = Cloud("us-east-1", ec2=ec2)
    assert sorted(i.release for i in fresh.group(NAME).instances) == ["", "old"]
    ec2.create_tags(Resources=late, Tags=[{"Key": "Release", "Value": "old"}])
    assert fresh.group(NAME) == first
    asked.clear()
    assert fresh.group(NAME) == first and not asked
    cloud.set_release(NAME, "new")
    cloud.set_desired(NAME, 3)
    assert sorted(i.release for i in cloud.group(NAME).instances) == ["new", "old", "old"]
    assert set(cloud.group(NAME).instances) > set(first.instances)
    assert len(asked) == 1


def test_an_instance_leaves_with_its_capacity_and_is_dead(asg: Any) -> None:
    cloud = Cloud("us-east-1")
    first = cloud.group(NAME).instances[0].instance_id
    assert not cloud.dead(first)
    cloud.terminate(first, decrement=True)
    group = cloud.group(NAME)
    assert group.desired == 1 and group.find(first) is None and cloud.dead(first)


def test_what_is_not_there_is_said(asg: Any) -> None:
    cloud = Cloud("us-east-1")
    with pytest.raises(UsageError, match="no autoscaling group nope"):
        cloud.group("nope")
    assert cloud.dead("i-0123456789abcdef0")


def test_a_capacity_that_aws_refuses_is_an_error_of_ours() -> None:
    refusal = {"Error": {"Code": "ValidationError", "Message": "New SetDesiredCapacity value 99 is above max value 3"}}

    class Refusing:
        def set_desired_capacity(self, **_: Any) -> None:
            raise ClientError(refusal, "SetDesiredCapacity")  # type: ignore[arg-type]

    with pytest.raises(SluiceError, match=r"cannot have 99 instances: .* above max value 3"):
        Cloud("us-east-1", autoscaling=Refusing(), ec2=object()).set_desired(NAME, 99)  # type: ignore[arg-type]


def test_why_a_group_cannot_launch(asg: Any) -> None:
    since = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)

    def activity(at: int, description: str, status: str, message: str = "-") -> dict[str, Any]:
        return {
            "ActivityId": "a",
            "AutoScalingGroupName": NAME,
            "Description": description,
            "Cause": "desired capacity",
            "StartTime": since + dt.timedelta(minutes=at),
            "StatusCode": status,
            "StatusMessage": message,
        }

    def said(*activities: dict[str, Any]) -> str:
        client: Any = boto3.client("autoscaling", "us-east-1")
        with Stubber(client) as stub:
            stub.add_response("describe_scaling_activities", {"Activities": list(activities)})
            return Cloud("us-east-1", autoscaling=client).launch_error(NAME, since)

    failed = activity(1, "Launching a new EC2 instance", "Failed", "You have requested more vCPU capacity than …")
    assert said(activity(2, "Terminating EC2 instance: i-1", "Successful"), failed).startswith("You have requested")
    assert said(activity(2, "Launching a new EC2 instance: i-2", "InProgress"), failed) == ""
    assert said({**failed, "StartTime": since - dt.timedelta(minutes=1)}) == ""
    assert Cloud("us-east-1").launch_error(NAME, since) == ""


def test_who_is_not_served_by_the_load_balancer(asg: Any) -> None:
    ec2, elb = boto3.client("ec2", "us-east-1"), boto3.client("elbv2", "us-east-1")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    made = elb.create_target_group(Name="web", Protocol="HTTP", Port=8080, VpcId=vpc)["TargetGroups"][0]
    asg.attach_load_balancer_target_groups(AutoScalingGroupName=NAME, TargetGroupARNs=[made["TargetGroupArn"]])
    cloud = Cloud("us-east-1")
    first, second = (i.instance_id for i in cloud.group(NAME).instances)
    elb.deregister_targets(TargetGroupArn=made["TargetGroupArn"], Targets=[{"Id": second}])
    assert {i.instance_id: i.served for i in cloud.group(NAME).instances} == {first: True, second: False}


def test_a_template_that_may_not_be_put_back_is_said_so(asg: Any) -> None:
    client: Any = boto3.client("autoscaling", "us-east-1")
    cloud = Cloud("us-east-1", autoscaling=client)
    with Stubber(client) as stub:
        template = {"LaunchTemplateId": "lt-1", "Version": "2"}
        group = {
            "AutoScalingGroupName": NAME,
            "MinSize": 0,
            "MaxSize": 1,
            "DesiredCapacity": 0,
            "DefaultCooldown": 0,
            "AvailabilityZones": [],
            "HealthCheckType": "EC2",
            "CreatedTime": dt.datetime.now(dt.UTC),
            "LaunchTemplate": template,
        }
        stub.add_response("describe_auto_scaling_groups", {"AutoScalingGroups": [group]})
        stub.add_client_error("update_auto_scaling_group", "AccessDenied", "You are not authorized")
        with pytest.raises(SluiceError, match="keeps its template: You are not authorized"):
            cloud.set_template(NAME, "1")
