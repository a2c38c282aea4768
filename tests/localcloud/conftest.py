"""A small AWS for the local cloud's own tests: the emulator as it runs in `deployctl local up`."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from runner.localcloud import engines, process
from runner.localcloud.state import LocalState

USER_DATA = """#cloud-config
write_files:
  - path: /etc/sluice/node.env
    content: |
      SLUICE_ROLE=worker
      SLUICE_POOL=cpu
      SLUICE_SLOTS=3
"""


def _eventually(check: Callable[[], Any], seconds: float = 8.0, what: str = "") -> Any:
    """Wait until check() is true and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < deadline, f"did not happen within {seconds} s: {what or check}"
        time.sleep(0.02)
    return value


def release_archive(text: str = "one") -> bytes:
    """A release whose wheel holds one module that says who it is."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("who.py", f"release = {text!r}\n")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo("wheel/sluice-0-py3-none-any.whl")
        info.size = len(wheel.getvalue())
        tar.addfile(info, io.BytesIO(wheel.getvalue()))
    return out.getvalue()


@dataclass
class Aws:
    """The emulator, and the little of it these tests need."""

    state: LocalState
    ec2: Any
    asg: Any
    s3: Any
    user_data: str = USER_DATA
    _groups: list[str] = field(default_factory=list)

    def put_release(self, release: str, content: bytes | None = None) -> None:
        bucket = self.state.artifacts_url.removeprefix("s3://")
        if bucket not in {b["Name"] for b in self.s3.list_buckets()["Buckets"]}:
            self.s3.create_bucket(Bucket=bucket)
        self.s3.put_object(
            Bucket=bucket,
            Key=f"releases/{release}.tar.gz",
            Body=release_archive(release) if content is None else content,
        )

    def group(
        self, name: str, size: int = 1, user_data: str = USER_DATA, release: str = "abc123", hook: bool = False
    ) -> None:
        """An autoscaling group with a launch template, like the workers stack makes one."""
        data = {
            "ImageId": "ami-12c6146b",
            "InstanceType": "m7i.large",
            "UserData": base64.b64encode(user_data.encode()).decode(),
        }
        self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
        hooks = [
            {
                "LifecycleHookName": "launch",
                "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
                "HeartbeatTimeout": 300,
                "DefaultResult": "ABANDON",
            }
        ]
        self.asg.create_auto_scaling_group(
            AutoScalingGroupName=name,
            MinSize=0,
            MaxSize=5,
            DesiredCapacity=size,
            AvailabilityZones=["us-east-1a"],
            LaunchTemplate={"LaunchTemplateName": name, "Version": "1"},
            Tags=[{"Key": "Release", "Value": release, "PropagateAtLaunch": True}],
            **({"LifecycleHookSpecificationList": hooks} if hook else {}),
        )
        self._groups.append(name)

    def instances(self, group: str) -> list[str]:
        """The instances of a group, oldest first."""
        found = self.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
        return [i["InstanceId"] for g in found for i in g["Instances"]]

    def lifecycle(self, instance: str) -> str:
        found = self.asg.describe_auto_scaling_instances(InstanceIds=[instance])["AutoScalingInstances"]
        return found[0]["LifecycleState"] if found else ""

    def clear(self) -> None:
        for name in self._groups:
            self.asg.delete_auto_scaling_group(AutoScalingGroupName=name, ForceDelete=True)
            self.ec2.delete_launch_template(LaunchTemplateName=name)
        self._groups.clear()


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Wait until a check is true and return its value; fail after so many seconds."""
    return _eventually


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    home = tmp_path_factory.mktemp("aws")
    port = engines.free_port()
    argv = [sys.executable, "-m", "runner.localcloud.aws", "--port", str(port)]
    process.start(argv, dict(os.environ), home / "aws.log", home / "aws.pid")
    state = LocalState(aws_endpoint=f"http://127.0.0.1:{port}")
    session = boto3.session.Session("local", "local", region_name=state.region)
    config = Config(retries={"max_attempts": 1})
    clients = [session.client(n, endpoint_url=state.aws_endpoint, config=config) for n in ("ec2", "autoscaling", "s3")]
    aws = Aws(state, *clients)

    def answers() -> bool:
        assert process.alive(home / "aws.pid"), (home / "aws.log").read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{state.aws_endpoint}/_sluice/ready", timeout=1):
            return True
        return False

    _eventually(answers, 60, "the emulator answers")
    yield aws
    process.stop(home / "aws.pid", grace=2)


@pytest.fixture
def aws(emulator: Aws) -> Iterator[Aws]:
    yield emulator
    emulator.clear()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that PostgreSQL can reach when the tests run as root.

    Not pytest's own: each new pytest of the same user closes those to everybody else again.
    """
    with tempfile.TemporaryDirectory(prefix="sluice-test-", ignore_cleanup_errors=True) as path:
        yield Path(path)
