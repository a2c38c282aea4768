"""Auto Scaling groups, against what AWS documents."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from .conftest import CLOCK_RATE, Clients

LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
HEARTBEAT = 30  # seconds, the shortest AWS takes


class Group:
    """An Auto Scaling group under test."""

    def __init__(self, clients: Clients, subnets: list[str], name: str) -> None:
        self.name = name
        self.asg, self.ec2 = clients("autoscaling"), clients("ec2")
        self.subnets = subnets
        self.template = self.ec2.create_launch_template(
            LaunchTemplateName=name,
            LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "t3.micro", "UserData": encoded("one")},
        )["LaunchTemplate"]["LaunchTemplateId"]

    def create(self, *, size: int, low: int = 0, high: int = 5, version: str = "1", **options: Any) -> Group:
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName=self.name,
            MinSize=low,
            MaxSize=high,
            DesiredCapacity=size,
            VPCZoneIdentifier=",".join(self.subnets),
            LaunchTemplate={"LaunchTemplateId": self.template, "Version": version},
            **options,
        )
        return self

    def describe(self) -> dict[str, Any]:
        groups: list[dict[str, Any]] = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])[
            "AutoScalingGroups"
        ]
        return groups[0]

    @property
    def desired(self) -> int:
        return int(self.describe()["DesiredCapacity"])

    def states(self) -> list[str]:
        return [i["LifecycleState"] for i in self.describe()["Instances"]]

    def ids(self) -> list[str]:
        return [i["InstanceId"] for i in self.describe()["Instances"]]

    def ec2_state(self, instance: str) -> str:
        found = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        return str(found["State"]["Name"])

    def set_desired(self, size: int) -> None:
        self.asg.set_desired_capacity(AutoScalingGroupName=self.name, DesiredCapacity=size)

    def terminate(self, instance: str, *, decrement: bool) -> None:
        self.asg.terminate_instance_in_auto_scaling_group(InstanceId=instance, ShouldDecrementDesiredCapacity=decrement)

    def complete(self, hook: str, instance: str, result: str) -> None:
        self.asg.complete_lifecycle_action(
            AutoScalingGroupName=self.name,
            LifecycleHookName=hook,
            InstanceId=instance,
            LifecycleActionResult=result,
        )

    def heartbeat(self, hook: str, instance: str) -> None:
        self.asg.record_lifecycle_action_heartbeat(
            AutoScalingGroupName=self.name, LifecycleHookName=hook, InstanceId=instance
        )


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def hook(transition: str, default: str = "ABANDON") -> dict[str, Any]:
    return {
        "LifecycleHookName": "hook",
        "LifecycleTransition": transition,
        "HeartbeatTimeout": HEARTBEAT,
        "DefaultResult": default,
    }


def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as e:
        call()
    assert e.value.response["Error"]["Code"] == "ValidationError"
    return str(e.value.response["Error"]["Message"])


@pytest.fixture
def group(clients: Clients, subnets: list[str], name: str) -> Group:
    return Group(clients, subnets, name)


class TestLaunch:
    def test_instances_are_spread_over_zones(self, group: Group) -> None:
        group.create(size=3)
        assert {i["AvailabilityZone"] for i in group.describe()["Instances"]} == {f"us-east-1{z}" for z in "abc"}

    def test_an_instance_remembers_the_template_version_it_was_launched_from(self, group: Group) -> None:
        group.create(size=1)
        group.ec2.create_launch_template_version(
            LaunchTemplateId=group.template, SourceVersion="1", LaunchTemplateData={"UserData": encoded("two")}
        )
        group.asg.update_auto_scaling_group(
            AutoScalingGroupName=group.name, LaunchTemplate={"LaunchTemplateId": group.template, "Version": "2"}
        )
        group.set_desired(2)
        members = group.describe()["Instances"]
        assert [i["LaunchTemplate"]["Version"] for i in members] == ["1", "2"]
        data = group.ec2.describe_instance_attribute(InstanceId=members[1]["InstanceId"], Attribute="userData")
        assert data["UserData"]["Value"] == encoded("two")

    def test_the_groups_tags_and_the_aws_ones_reach_the_instance(self, group: Group) -> None:
        tags = [
            {"Key": "Release", "Value": "r1", "PropagateAtLaunch": True},
            {"Key": "Private", "Value": "x", "PropagateAtLaunch": False},
        ]
        group.create(size=1, Tags=tags)
        found = group.ec2.describe_instances(InstanceIds=group.ids())["Reservations"][0]["Instances"][0]["Tags"]
        assert {t["Key"]: t["Value"] for t in found} == {
            "Release": "r1",
            "aws:autoscaling:groupName": group.name,
            "aws:ec2launchtemplate:id": group.template,
            "aws:ec2launchtemplate:version": "1",
        }

    def test_activities_are_listed_newest_first(self, group: Group) -> None:
        group.create(size=1)
        instance = group.ids()[0]
        group.terminate(instance, decrement=True)
        listed = group.asg.describe_scaling_activities(AutoScalingGroupName=group.name)["Activities"]
        assert listed[0]["Description"] == f"Terminating EC2 instance: {instance}"
        assert listed[-1]["Description"] == f"Launching a new EC2 instance: {instance}"


class TestCapacity:
    def test_raising_the_minimum_raises_the_desired_capacity(self, group: Group) -> None:
        group.create(size=2, low=2)
        group.asg.update_auto_scaling_group(AutoScalingGroupName=group.name, MinSize=3)
        assert group.desired == 3
        assert group.states() == ["InService"] * 3

    def test_lowering_the_minimum_leaves_the_desired_capacity(self, group: Group) -> None:
        group.create(size=3, low=3)
        group.asg.update_auto_scaling_group(AutoScalingGroupName=group.name, MinSize=1)
        assert group.desired == 3

    def test_lowering_the_maximum_lowers_the_desired_capacity(self, group: Group) -> None:
        group.create(size=3)
        group.asg.update_auto_scaling_group(AutoScalingGroupName=group.name, MaxSize=2)
        assert group.desired == 2
        assert len(group.ids()) == 2

    def test_a_desired_capacity_outside_the_bounds_is_refused(self, group: Group) -> None:
        group.create(size=1, low=1, high=2)
        assert "above max value 2" in refused(lambda: group.set_desired(3))
        assert "below min value 1" in refused(lambda: group.set_desired(0))

    def test_scale_in_leaves_protected_instances(self, group: Group) -> None:
        group.create(size=2)
        kept, gone = group.ids()
        group.asg.set_instance_protection(
            AutoScalingGroupName=group.name, InstanceIds=[kept], ProtectedFromScaleIn=True
        )
        group.set_desired(0)
        assert group.ids() == [kept]
        assert group.ec2_state(gone) == "terminated"

    def test_a_scale_in_that_protection_held_back_goes_on_without_it(self, group: Group) -> None:
        group.create(size=2, NewInstancesProtectedFromScaleIn=True)
        group.set_desired(0)
        assert group.states() == ["InService", "InService"]
        group.asg.set_instance_protection(
            AutoScalingGroupName=group.name, InstanceIds=group.ids(), ProtectedFromScaleIn=False
        )
        assert group.ids() == []

    def test_new_instances_are_protected_if_the_group_says_so(self, group: Group) -> None:
        group.create(size=1, NewInstancesProtectedFromScaleIn=True)
        group.set_desired(0)
        assert group.states() == ["InService"]

    def test_scale_in_takes_from_the_fullest_zone(self, group: Group) -> None:
        group.create(size=4)
        group.set_desired(3)
        assert len({i["AvailabilityZone"] for i in group.describe()["Instances"]}) == 3


class TestTermination:
    def test_without_decrement_the_instance_is_replaced(self, group: Group) -> None:
        group.create(size=1)
        (before,) = group.ids()
        group.terminate(before, decrement=False)
        (after,) = group.ids()
        assert after != before
        assert group.desired == 1

    def test_with_decrement_it_is_not(self, group: Group) -> None:
        group.create(size=2)
        before, other = group.ids()
        group.terminate(before, decrement=True)
        assert group.ids() == [other]
        assert group.desired == 1

    def test_a_decrement_below_the_minimum_is_refused(self, group: Group) -> None:
        group.create(size=1, low=1)
        assert "min size constraint" in refused(lambda: group.terminate(group.ids()[0], decrement=True))
        assert group.states() == ["InService"]

    def test_protection_does_not_cover_a_termination_by_hand(self, group: Group) -> None:
        group.create(size=1, NewInstancesProtectedFromScaleIn=True)
        group.terminate(group.ids()[0], decrement=True)
        assert group.ids() == []

    def test_an_instance_ec2_terminates_is_gone_without_its_hook_and_replaced(self, group: Group) -> None:
        group.create(size=1, LifecycleHookSpecificationList=[hook(TERMINATING)])
        (before,) = group.ids()
        group.ec2.terminate_instances(InstanceIds=[before])
        (after,) = group.ids()
        assert after != before

    def test_an_unhealthy_instance_is_replaced(self, group: Group) -> None:
        group.create(size=1)
        (before,) = group.ids()
        group.asg.set_instance_health(InstanceId=before, HealthStatus="Unhealthy")
        assert group.ids() != [before]

    def test_a_group_with_instances_is_not_deleted_unless_forced(self, group: Group) -> None:
        group.create(size=1)
        (instance,) = group.ids()
        with pytest.raises(ClientError, match="ResourceInUse"):
            group.asg.delete_auto_scaling_group(AutoScalingGroupName=group.name)
        group.asg.delete_auto_scaling_group(AutoScalingGroupName=group.name, ForceDelete=True)
        assert group.ec2_state(instance) == "terminated"


class TestLaunchHook:
    @pytest.fixture
    def launching(self, group: Group) -> Group:
        return group.create(size=1, LifecycleHookSpecificationList=[hook(LAUNCHING)])

    def test_it_holds_the_instance_until_continue(self, launching: Group) -> None:
        assert launching.states() == ["Pending:Wait"]
        launching.complete("hook", launching.ids()[0], "CONTINUE")
        assert launching.states() == ["InService"]

    def test_a_waiting_instance_counts_against_the_desired_capacity(self, launching: Group) -> None:
        launching.set_desired(1)
        assert launching.states() == ["Pending:Wait"]

    def test_abandon_replaces_the_instance(self, launching: Group) -> None:
        (first,) = launching.ids()
        launching.complete("hook", first, "ABANDON")
        (second,) = launching.ids()
        assert second != first
        assert launching.ec2_state(first) == "terminated"

    def test_silence_until_the_timeout_takes_the_default_result(self, launching: Group) -> None:
        (first,) = launching.ids()
        eventually(lambda: launching.ids() != [first])

    def test_a_hook_added_later_holds_only_new_instances(self, group: Group) -> None:
        group.create(size=1)
        group.asg.put_lifecycle_hook(AutoScalingGroupName=group.name, **hook(LAUNCHING))
        group.set_desired(2)
        assert group.states() == ["InService", "Pending:Wait"]


class TestTerminateHook:
    def test_an_instance_leaves_its_target_group_when_its_drain_begins_and_ends_when_it_is_over(
        self, group: Group, clients: Clients, name: str
    ) -> None:
        elb = clients("elbv2")
        vpc = group.ec2.describe_subnets(SubnetIds=group.subnets)["Subnets"][0]["VpcId"]
        made = elb.create_target_group(Name=name, Protocol="HTTP", Port=80, VpcId=vpc)
        target = made["TargetGroups"][0]["TargetGroupArn"]

        def targets() -> int:
            return len(elb.describe_target_health(TargetGroupArn=target)["TargetHealthDescriptions"])

        group.create(size=1, TargetGroupARNs=[target], LifecycleHookSpecificationList=[hook(TERMINATING)])
        (instance,) = group.ids()
        assert targets() == 1
        group.terminate(instance, decrement=True)
        assert (group.states(), targets()) == (["Terminating:Wait"], 0)
        group.complete(hook(TERMINATING)["LifecycleHookName"], instance, "CONTINUE")
        assert group.ids() == [] and group.ec2_state(instance) == "terminated"

    @pytest.fixture
    def draining(self, group: Group) -> Group:
        group.create(size=1, LifecycleHookSpecificationList=[hook(TERMINATING)])
        group.terminate(group.ids()[0], decrement=True)
        return group

    def test_it_holds_the_running_instance_until_it_is_answered(self, draining: Group) -> None:
        (instance,) = draining.ids()
        assert draining.states() == ["Terminating:Wait"]
        assert draining.ec2_state(instance) == "running"
        draining.complete("hook", instance, "CONTINUE")
        assert draining.ids() == []
        assert draining.ec2_state(instance) == "terminated"

    def test_it_no_longer_counts_and_is_replaced_meanwhile(self, group: Group) -> None:
        group.create(size=1, LifecycleHookSpecificationList=[hook(TERMINATING)])
        group.terminate(group.ids()[0], decrement=False)
        assert sorted(group.states()) == ["InService", "Terminating:Wait"]

    def test_heartbeats_hold_it_past_the_timeout(self, draining: Group) -> None:
        (instance,) = draining.ids()
        beat_until = time.monotonic() + 3 * HEARTBEAT / CLOCK_RATE
        while time.monotonic() < beat_until:
            draining.heartbeat("hook", instance)
            time.sleep(0.03)
        assert draining.states() == ["Terminating:Wait"]
        eventually(lambda: draining.ids() == [])

    def test_an_answered_action_is_unknown(self, draining: Group) -> None:
        (instance,) = draining.ids()
        draining.complete("hook", instance, "CONTINUE")
        assert instance in refused(lambda: draining.complete("hook", instance, "CONTINUE"))
        assert instance in refused(lambda: draining.heartbeat("hook", instance))

    def test_two_hooks_must_both_be_answered(self, group: Group) -> None:
        second = {**hook(TERMINATING), "LifecycleHookName": "second"}
        group.create(size=1, LifecycleHookSpecificationList=[hook(TERMINATING), second])
        (instance,) = group.ids()
        group.terminate(instance, decrement=True)
        group.complete("second", instance, "CONTINUE")
        assert group.states() == ["Terminating:Wait"]
        group.complete("hook", instance, "CONTINUE")
        assert group.ids() == []


def test_hooks_are_read_back_as_they_were_put(group: Group) -> None:
    group.create(size=0, LifecycleHookSpecificationList=[{**hook(LAUNCHING), "NotificationMetadata": "why"}])
    (found,) = group.asg.describe_lifecycle_hooks(AutoScalingGroupName=group.name)["LifecycleHooks"]
    assert found == {
        "AutoScalingGroupName": group.name,
        "DefaultResult": "ABANDON",
        "GlobalTimeout": 3000,
        "HeartbeatTimeout": HEARTBEAT,
        "LifecycleHookName": "hook",
        "LifecycleTransition": LAUNCHING,
        "NotificationMetadata": "why",
    }


def test_a_heartbeat_timeout_outside_30_to_7200_seconds_is_refused(group: Group) -> None:
    group.create(size=0)
    put = {**hook(LAUNCHING), "HeartbeatTimeout": 29}
    assert "30" in refused(lambda: group.asg.put_lifecycle_hook(AutoScalingGroupName=group.name, **put))


def test_a_mixed_instances_policy_survives_an_update_that_does_not_name_it(group: Group) -> None:
    overrides = [{"InstanceType": "m7i.large"}, {"InstanceType": "m6i.large"}]
    specification = {"LaunchTemplateId": group.template, "Version": "1"}
    group.asg.create_auto_scaling_group(
        AutoScalingGroupName=group.name,
        MinSize=1,
        MaxSize=3,
        VPCZoneIdentifier=group.subnets[0],
        MixedInstancesPolicy={"LaunchTemplate": {"LaunchTemplateSpecification": specification, "Overrides": overrides}},
    )
    group.asg.update_auto_scaling_group(AutoScalingGroupName=group.name, MinSize=2)
    found = group.describe()
    assert found["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"] == overrides
    assert [i["InstanceType"] for i in found["Instances"]] == ["m7i.large"] * 2
