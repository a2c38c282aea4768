"""What the machines need to know of the emulated EC2 and Auto Scaling, asked as rarely as possible."""

from __future__ import annotations

import base64
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from runner.localcloud.state import LocalState

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import InstanceTypeDef

_UP = ("pending", "running")
_KNOWN = (*_UP, "stopping", "stopped", "shutting-down")
_GROUP_TAG = "aws:autoscaling:groupName"


@dataclass(frozen=True)
class Instance:
    """One EC2 instance as DescribeInstances shows it."""

    id: str
    state: str
    tags: dict[str, str]
    zone: str
    private_ip: str
    type: str
    image: str
    architecture: str
    launched: datetime
    spot: bool

    @property
    def up(self) -> bool:
        """Whether the machine has power."""
        return self.state in _UP

    @property
    def group(self) -> str:
        """Its autoscaling group, empty if it is in none."""
        return self.tags.get(_GROUP_TAG, "")


class Cloud:
    """The instances and their lifecycle states, kept up to date by refresh().

    DescribeInstances costs the emulator five times what DescribeAutoScalingInstances costs, so every refresh asks
    the second, and the first only when the members of a group have changed or a full look is due.
    """

    def __init__(self, state: LocalState, full_seconds: float = 8.0) -> None:
        config = Config(parameter_validation=False, connect_timeout=2, read_timeout=20, retries={"max_attempts": 1})
        session = boto3.session.Session(
            aws_access_key_id="local", aws_secret_access_key="local", region_name=state.region
        )
        endpoint = state.aws_endpoint
        self._ec2 = session.client("ec2", endpoint_url=endpoint, config=config)
        self._asg = session.client("autoscaling", endpoint_url=endpoint, config=config)
        self.account = state.account
        self.region = state.region
        self._full_seconds = full_seconds
        self._full_at = 0.0
        self._lifecycle: dict[str, str] = {}
        self._instances: dict[str, Instance] = {}
        self._user_data: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def refresh(self, *, full: bool = False) -> dict[str, Instance]:
        """Ask the API and return the instances that exist, by id. Raises botocore's errors: then nothing changed."""
        lifecycle = {
            item["InstanceId"]: item["LifecycleState"]
            for page in self._asg.get_paginator("describe_auto_scaling_instances").paginate()
            for item in page["AutoScalingInstances"]
        }
        full = full or lifecycle.keys() != self._lifecycle.keys()
        if full or time.monotonic() - self._full_at > self._full_seconds:
            instances = self._describe()
            with self._lock:
                self._instances = instances
            self._full_at = time.monotonic()
        self._lifecycle = lifecycle
        return dict(self._instances)

    def get(self, instance_id: str) -> Instance | None:
        """An instance as of the last refresh; None if there is none or it was terminated."""
        with self._lock:
            return self._instances.get(instance_id)

    def at(self, address: str) -> str:
        """The instance that is up and has this private address; empty if there is none."""
        with self._lock:
            return next((i.id for i in self._instances.values() if i.up and i.private_ip == address), "")

    def lifecycle_state(self, instance_id: str) -> str:
        """Its lifecycle state in its autoscaling group as of the last refresh; empty if it is in none."""
        return self._lifecycle.get(instance_id, "")

    def user_data(self, instance_id: str) -> bytes:
        """The user data the instance was launched with, decoded; asked once."""
        if instance_id not in self._user_data:
            answer = self._ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
            self._user_data[instance_id] = base64.b64decode(answer.get("UserData", {}).get("Value", ""))
        return self._user_data[instance_id]

    def tag(self, instance_id: str, key: str) -> str:
        """One tag, asked now; empty if it is not set."""
        filters: list[Any] = [{"Name": "resource-id", "Values": [instance_id]}, {"Name": "key", "Values": [key]}]
        tags = self._ec2.describe_tags(Filters=filters)["Tags"]
        return tags[0]["Value"] if tags else ""

    def abandon_launch(self, instance_id: str) -> list[str]:
        """Answer ABANDON to every hook the instance's launch waits for; returns their names."""
        answered = []
        group = instance.group if (instance := self.get(instance_id)) else ""
        if not group:
            return []
        for hook in self._asg.describe_lifecycle_hooks(AutoScalingGroupName=group)["LifecycleHooks"]:
            if not hook["LifecycleTransition"].endswith("INSTANCE_LAUNCHING"):
                continue
            try:
                self._asg.complete_lifecycle_action(
                    AutoScalingGroupName=group,
                    LifecycleHookName=hook["LifecycleHookName"],
                    InstanceId=instance_id,
                    LifecycleActionResult="ABANDON",
                )
            except ClientError as e:
                if e.response["Error"]["Code"] != "ValidationError":  # no action of that hook is waiting
                    raise
            else:
                answered.append(hook["LifecycleHookName"])
        return answered

    def terminate(self, instance_id: str) -> None:
        """Terminate an instance, as EC2 does when a spot notice has run out."""
        self._ec2.terminate_instances(InstanceIds=[instance_id])

    def _describe(self) -> dict[str, Instance]:
        filters: list[Any] = [{"Name": "instance-state-name", "Values": list(_KNOWN)}]
        return {
            found["InstanceId"]: _instance(found)
            for page in self._ec2.get_paginator("describe_instances").paginate(Filters=filters)
            for reservation in page["Reservations"]
            for found in reservation["Instances"]
        }


def _instance(found: InstanceTypeDef) -> Instance:
    return Instance(
        id=found["InstanceId"],
        state=found["State"]["Name"],
        tags={tag["Key"]: tag["Value"] for tag in found.get("Tags", [])},
        zone=found["Placement"]["AvailabilityZone"],
        private_ip=found.get("PrivateIpAddress", ""),
        type=found["InstanceType"],
        image=found["ImageId"],
        architecture=found.get("Architecture", "x86_64"),
        launched=found["LaunchTime"],
        spot=found.get("InstanceLifecycle") == "spot",
    )
