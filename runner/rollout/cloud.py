"""The autoscaling groups of AWS, as the rollout needs them: thin, no decisions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from runner.rollout.facts import Group, Instance
from runner.settings import SluiceError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_autoscaling import AutoScalingClient
    from mypy_boto3_autoscaling.type_defs import AutoScalingGroupTypeDef
    from mypy_boto3_ec2 import EC2Client

RELEASE_TAG = "Release"
_DEAD = ("terminated",)


def group_name(env: str, role: str, pool: str) -> str:
    """What Terraform calls the autoscaling group of a pool."""
    return f"sluice-{env}-{role}-{pool}" if role == "worker" else f"sluice-{env}-{role}"


class Cloud:
    """The groups of one region. Raises botocore's errors; SluiceError where AWS says no to what was asked."""

    def __init__(
        self, region: str, *, autoscaling: AutoScalingClient | None = None, ec2: EC2Client | None = None
    ) -> None:
        config = Config(connect_timeout=3, read_timeout=15, retries={"mode": "standard", "max_attempts": 3})
        self._asg = autoscaling or boto3.client("autoscaling", region_name=region, config=config)
        self._ec2 = ec2 or boto3.client("ec2", region_name=region, config=config)
        self._elb = boto3.client("elbv2", region_name=region, config=config)
        self._births: dict[str, dict[str, tuple[str, str]]] = {}  # group → instance → when it was launched, as what

    def groups(self, prefix: str) -> list[Group]:
        """All groups whose name starts like this, without their instances' own tags."""
        pages = self._asg.get_paginator("describe_auto_scaling_groups").paginate()
        found = [g for page in pages for g in page["AutoScalingGroups"]]
        return [_group(g, {}, ()) for g in found if g["AutoScalingGroupName"].startswith(prefix)]

    def releases(self, env: str) -> dict[str, str]:
        """Every release that a group's tag of this environment names or that a machine of it booted with: by whom."""
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=[{"Name": "tag:Env", "Values": [env]}])
        machines = (i for page in pages for r in page["Reservations"] for i in r["Instances"])
        found = {
            tag["Value"]: f"machine {machine['InstanceId']}"
            for machine in machines
            if machine["State"]["Name"] not in _DEAD
            for tag in machine.get("Tags", [])
            if tag["Key"] == RELEASE_TAG
        }
        return found | {g.release: f"the tag of {g.name}" for g in self.groups(f"sluice-{env}-") if g.release}

    def group(self, name: str) -> Group:
        """One group with its instances, in the order they were launched. Raises UsageError if there is none.

        EC2 is asked about instances that are new since the last time: what one was launched as does not change.
        """
        found = self._asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        if not found:
            raise UsageError(f"there is no autoscaling group {name}", "is the pool's name right, and is it applied?")
        ids = [i["InstanceId"] for i in found[0].get("Instances", [])]
        unserved = self._unserved(found[0].get("TargetGroupARNs", []), ids)
        known = {i: birth for i, birth in self._births.get(name, {}).items() if i in ids}
        known |= self._born([i for i in ids if i not in known])
        self._births[name] = {i: birth for i, birth in known.items() if birth[1]}  # a tag may be late to be shown
        group = _group(found[0], {i: release for i, (_, release) in known.items()}, unserved)
        ordered = sorted(group.instances, key=lambda i: (known.get(i.instance_id, ("", ""))[0], i.instance_id))
        return Group(**{**vars(group), "instances": tuple(ordered)})

    def _born(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """When these instances were launched, and with which release; without those that EC2 does not show yet."""
        found = {}
        for start in range(0, len(ids), 100):
            wanted = [{"Name": "instance-id", "Values": ids[start : start + 100]}]
            for page in self._ec2.get_paginator("describe_instances").paginate(Filters=wanted):  # type: ignore[arg-type]
                for instance in (i for r in page["Reservations"] for i in r["Instances"]):
                    tags = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
                    birth = (instance["LaunchTime"].isoformat(), tags.get(RELEASE_TAG, ""))
                    found[instance["InstanceId"]] = birth
        return found

    def set_release(self, name: str, release: str) -> None:
        """Change the group's tag; instances launched from now on carry it."""
        tag = {
            "ResourceId": name,
            "ResourceType": "auto-scaling-group",
            "Key": RELEASE_TAG,
            "Value": release,
            "PropagateAtLaunch": True,
        }
        self._asg.create_or_update_tags(Tags=[tag])  # type: ignore[list-item]

    def set_template(self, name: str, version: str) -> None:
        """Launch from this version of the group's template from now on. Raises SluiceError if that is not allowed."""
        found = self._asg.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"][0]
        policy: Any = found.get("MixedInstancesPolicy")
        current: Any = policy["LaunchTemplate"]["LaunchTemplateSpecification"] if policy else found["LaunchTemplate"]
        wanted: Any = {"LaunchTemplateId": current["LaunchTemplateId"], "Version": version}
        if policy:
            policy = {**policy, "LaunchTemplate": {**policy["LaunchTemplate"], "LaunchTemplateSpecification": wanted}}
        change: Any = {"MixedInstancesPolicy": policy} if policy else {"LaunchTemplate": wanted}
        try:
            self._asg.update_auto_scaling_group(AutoScalingGroupName=name, **change)
        except ClientError as e:
            if e.response["Error"]["Code"] not in ("AccessDenied", "UnauthorizedOperation"):
                raise
            raise SluiceError(f"{name} keeps its template: {e.response['Error']['Message']}") from None

    def launch_error(self, name: str, since: dt.datetime) -> str:
        """What the group says of its last launch since then, if that failed: no capacity, a quota; else ""."""
        found = self._asg.describe_scaling_activities(AutoScalingGroupName=name, MaxRecords=20)["Activities"]
        for activity in found:
            if activity["StartTime"] < since or not activity["Description"].startswith("Launching"):
                continue
            if activity["StatusCode"] in ("Failed", "Cancelled"):
                return " ".join(activity.get("StatusMessage", activity["Description"]).split())
            return ""
        return ""

    def _unserved(self, target_groups: Sequence[str], instances: Sequence[str]) -> set[str]:
        """Those of these instances that a load balancer does not find healthy."""
        out: set[str] = set()
        for arn in target_groups:
            health = self._elb.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
            healthy = {h["Target"]["Id"] for h in health if h["TargetHealth"]["State"] == "healthy"}
            out |= set(instances) - healthy
        return out

    def set_desired(self, name: str, count: int) -> None:
        """Ask for so many instances."""
        try:
            self._asg.set_desired_capacity(AutoScalingGroupName=name, DesiredCapacity=count, HonorCooldown=False)
        except ClientError as e:
            if e.response["Error"]["Code"] == "ValidationError":
                raise SluiceError(f"{name} cannot have {count} instances: {e.response['Error']['Message']}") from None
            raise

    def terminate(self, instance_id: str, *, decrement: bool) -> None:
        """Terminate a member, with its capacity or to be replaced. One that is not a member any more is fine."""
        try:
            self._asg.terminate_instance_in_auto_scaling_group(
                InstanceId=instance_id, ShouldDecrementDesiredCapacity=decrement
            )
        except ClientError as e:
            if "not found" not in e.response["Error"]["Message"]:
                raise

    def dead(self, instance_id: str) -> bool:
        """Whether EC2 says that the machine is terminated, or does not know it (any more)."""
        try:
            found = self._ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
        except ClientError as e:
            if e.response["Error"]["Code"] in ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"):
                return True
            raise
        return all(i["State"]["Name"] in _DEAD for r in found for i in r["Instances"])

    def existing(self, instance_ids: Sequence[str]) -> set[str]:
        """Those of these instances that are not terminated. One that is shutting down may still run something."""
        wanted = [{"Name": "instance-id", "Values": list(instance_ids)}]
        pages = self._ec2.get_paginator("describe_instances").paginate(Filters=wanted)  # type: ignore[arg-type]
        instances = (i for page in pages for r in page["Reservations"] for i in r["Instances"])
        return {i["InstanceId"] for i in instances if i["State"]["Name"] not in _DEAD}


def _group(found: AutoScalingGroupTypeDef, tags: Mapping[str, str], unserved: Collection[str]) -> Group:
    own = {t["Key"]: t.get("Value", "") for t in found.get("Tags", []) if "Key" in t}
    policy: Any = found.get("MixedInstancesPolicy", {}).get("LaunchTemplate", {}).get("LaunchTemplateSpecification")
    return Group(
        name=found["AutoScalingGroupName"],
        desired=found["DesiredCapacity"],
        minimum=found["MinSize"],
        maximum=found["MaxSize"],
        release=own.get(RELEASE_TAG, ""),
        template=_version(policy or found.get("LaunchTemplate")),
        instances=tuple(
            Instance(
                i["InstanceId"],
                i["LifecycleState"],
                tags.get(i["InstanceId"], ""),
                _version(i.get("LaunchTemplate")),
                i["InstanceId"] not in unserved,
            )
            for i in found.get("Instances", [])
        ),
        tags=own,
    )


def _version(template: Any) -> str:
    """The number of a launch template's version; "" where there is none, or only a name that moves."""
    version = str((template or {}).get("Version", ""))
    return version if version.isdigit() else ""
