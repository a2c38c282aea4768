"""An AWS of its own, a copy of the tree, and machines that play their side of the lifecycle hooks."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from runner.deployctl.job import StackResult

ROOT = Path(__file__).parents[2]
ACCOUNT = "123456789012"


# Every kind of thing that a stack makes and that is listed by itself: service, call, the list in its answer.
LISTINGS = [
    ("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups"),
    ("cloudwatch", "describe_alarms", "MetricAlarms"),
    ("dms", "describe_endpoints", "Endpoints"),
    ("dms", "describe_replication_instances", "ReplicationInstances"),
    ("ec2", "describe_addresses", "Addresses"),
    ("ec2", "describe_flow_logs", "FlowLogs"),
    ("ec2", "describe_instances", "Reservations"),
    ("ec2", "describe_internet_gateways", "InternetGateways"),
    ("ec2", "describe_launch_templates", "LaunchTemplates"),
    ("ec2", "describe_nat_gateways", "NatGateways"),
    ("ec2", "describe_network_interfaces", "NetworkInterfaces"),
    ("ec2", "describe_route_tables", "RouteTables"),
    ("ec2", "describe_security_groups", "SecurityGroups"),
    ("ec2", "describe_subnets", "Subnets"),
    ("ec2", "describe_volumes", "Volumes"),
    ("ec2", "describe_vpc_endpoints", "VpcEndpoints"),
    ("ec2", "describe_vpcs", "Vpcs"),
    ("elasticache", "describe_cache_subnet_groups", "CacheSubnetGroups"),
    ("elasticache", "describe_replication_groups", "ReplicationGroups"),
    ("elbv2", "describe_load_balancers", "LoadBalancers"),
    ("elbv2", "describe_target_groups", "TargetGroups"),
    ("events", "list_rules", "Rules"),
    ("iam", "list_instance_profiles", "InstanceProfiles"),
    ("iam", "list_open_id_connect_providers", "OpenIDConnectProviderList"),
    ("iam", "list_policies", "Policies"),
    ("iam", "list_roles", "Roles"),
    ("kms", "list_aliases", "Aliases"),
    ("logs", "describe_log_groups", "logGroups"),
    ("rds", "describe_db_instances", "DBInstances"),
    ("rds", "describe_db_parameter_groups", "DBParameterGroups"),
    ("rds", "describe_db_subnet_groups", "DBSubnetGroups"),
    ("route53", "list_hosted_zones", "HostedZones"),
    ("s3", "list_buckets", "Buckets"),
    ("secretsmanager", "list_secrets", "SecretList"),
    ("sns", "list_subscriptions", "Subscriptions"),
    ("sns", "list_topics", "Topics"),
    ("ssm", "describe_parameters", "Parameters"),
]
ARGUMENTS: dict[str, dict[str, Any]] = {"list_policies": {"Scope": "Local"}}
# Where a list has what is gone beside what there is.
ALIVE: dict[str, Callable[[dict[str, Any]], bool]] = {
    "describe_instances": lambda i: i["State"]["Name"] != "terminated",
    "describe_nat_gateways": lambda g: g["State"] != "deleted",
    "describe_vpc_endpoints": lambda e: e["State"].lower() != "deleted",
    "list_secrets": lambda secret: "DeletedDate" not in secret,
    "describe_parameters": lambda p: not p["Name"].startswith("/aws/"),  # AWS's own, everybody's
}


@dataclass
class Cloud:
    """An emulated AWS: where it answers, and every request it got."""

    endpoint: str
    log: Path
    resting: threading.Event = field(default_factory=threading.Event)  # set: the machines ask for nothing

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def calls(self, since: int = 0) -> list[dict[str, Any]]:
        """The requests after the first `since`."""
        return [json.loads(row) for row in self.log.read_text().splitlines()[since:]]

    def requests(self) -> int:
        return len(self.log.read_text().splitlines())

    def contents(self) -> dict[str, int]:
        """How many objects of each kind there are, as AWS's own listings say."""
        found = {}
        for service, call, listed in LISTINGS:
            client, lives = self.client(service), ALIVE.get(call, lambda _: True)
            arguments = ARGUMENTS.get(call, {})
            if client.can_paginate(call):
                pages = client.get_paginator(call).paginate(**arguments)
            else:
                pages = [getattr(client, call)(**arguments)]
            rows = [row for page in pages for row in page[listed]]
            if call == "describe_instances":
                rows = [instance for reservation in rows for instance in reservation["Instances"]]
            count = sum(map(lives, rows))
            if count:
                found[f"{service} {listed}"] = count
        return found

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "requests"
    log.touch()
    argv = [sys.executable, "-m", "runner.localcloud.aws", "--port", str(port), "--log", str(log)]
    with (tmp_path / "aws.log").open("wb") as out:
        server = subprocess.Popen(argv, stdout=out, stderr=out, cwd=ROOT)
    found = Cloud(f"http://127.0.0.1:{port}", log)
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    ended = threading.Event()
    machines = threading.Thread(target=_play_machines, args=(found, ended), daemon=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{found.endpoint}/_sluice/ready", timeout=2).close()
                break
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "aws.log").read_text()
            time.sleep(0.1)
        machines.start()
        yield found
    finally:
        ended.set()
        if machines.is_alive():
            machines.join(30)
        server.terminate()
        server.wait(30)


@pytest.fixture
def tree(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tree in which each environment has what its owner would fill in: an account, a certificate."""
    certificate = cloud.client("acm").request_certificate(DomainName="sluice.example")["CertificateArn"]
    root = tmp_path / "checkout"
    target = Path(shutil.copytree(ROOT / "terraform", root / "terraform", ignore=shutil.ignore_patterns(".terraform")))
    for path in target.glob("envs/*/*.tfvars"):
        text = path.read_text().replace("000000000000", ACCOUNT)
        path.write_text(re.sub(r'certificate_arn\s*=\s*""', f'certificate_arn = "{certificate}"', text))
    monkeypatch.chdir(root)
    return target


def _play_machines(cloud: Cloud, ended: threading.Event) -> None:
    """Complete every hook that an instance waits for, as its agent would."""
    client = cloud.client("autoscaling")
    while not ended.wait(0.5):
        if cloud.resting.is_set():
            continue
        with contextlib.suppress(Exception):  # a group may go while we look at it
            for group in client.describe_auto_scaling_groups()["AutoScalingGroups"]:
                waiting = [i for i in group["Instances"] if i["LifecycleState"].endswith(":Wait")]
                if not waiting:
                    continue
                name = group["AutoScalingGroupName"]
                hooks = client.describe_lifecycle_hooks(AutoScalingGroupName=name)["LifecycleHooks"]
                for instance in waiting:
                    for hook in hooks:
                        with contextlib.suppress(client.exceptions.ClientError):
                            client.complete_lifecycle_action(
                                AutoScalingGroupName=name,
                                LifecycleHookName=hook["LifecycleHookName"],
                                InstanceId=instance["InstanceId"],
                                LifecycleActionResult="CONTINUE",
                            )


def statuses(results: list[StackResult]) -> dict[str, str]:
    return {r.stack: r.status for r in results}
