"""KILL in the middle of an apply: the next one takes in what was made, and makes nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from runner.deployctl import environment, infra, locks, main, operations
from tests.killing import kill_with_terraform

pytestmark = [pytest.mark.terraform, pytest.mark.slow]

_STACK = """
terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
  backend "s3" {}
}
provider "aws" {
  region = var.region
}
variable "env" { type = string }
variable "region" { type = string }
variable "account_id" { type = string }
variable "state_bucket" { type = string }
resource "aws_vpc" "this" {
  cidr_block = "10.9.0.0/16"
  tags       = { Name = "NAME" }
}
resource "aws_subnet" "this" {
  for_each   = toset(["a", "b"])
  vpc_id     = aws_vpc.this.id
  cidr_block = each.key == "a" ? "10.9.1.0/24" : "10.9.2.0/24"
}
resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
}
resource "aws_route_table_association" "this" {
  for_each       = aws_subnet.this
  subnet_id      = each.value.id
  route_table_id = aws_route_table.this.id
}
resource "aws_cloudwatch_log_group" "this" {
  name = "NAME"
}
resource "aws_iam_role" "this" {
  name = "NAME"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
}
resource "aws_iam_role_policy_attachment" "this" {
  role       = aws_iam_role.this.name
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}
resource "aws_sqs_queue" "this" { # the provider waits for half a minute after this: there the run is killed
  depends_on = [
    aws_route_table_association.this, aws_iam_role_policy_attachment.this, aws_cloudwatch_log_group.this
  ]
  name = "NAME"
}
output "vpc" { value = aws_vpc.this.id }
"""


def aws(service: str) -> Any:
    env = environment.load("tiny")
    return environment.client(service, env, environment.process_environ(env))


def there(name: str) -> dict[str, int]:
    ec2 = aws("ec2")
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "tag:Name", "Values": [name]}])["Vpcs"]
    inside = [{"Name": "vpc-id", "Values": [v["VpcId"] for v in vpcs] or ["none"]}]
    queues = aws("sqs").list_queues(QueueNamePrefix=name).get("QueueUrls", [])
    return {
        "vpcs": len(vpcs),
        "subnets": len(ec2.describe_subnets(Filters=inside)["Subnets"]),
        "queues": len(queues),
    }


def kill_in_the_middle(name: str) -> None:
    """Start an apply, and KILL it and its terraform when the queue has been asked for."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "runner.deployctl.main",
            "infra",
            "apply",
            "--env",
            "tiny",
            "--stack",
            "network",
            "--yes",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    deadline = time.monotonic() + 240
    while not there(name)["queues"]:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the queue was never asked for"
        time.sleep(0.1)
    kill_with_terraform(process)


def locks_held() -> list[dict[str, Any]]:
    job = operations.prepare("tiny", ["network"])
    return [h.as_json() for h in locks.held(job.env, job.names, job.environ)]


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """What the resources of this test are called: the emulated AWS is the same for all tests."""
    return f"killed-{abs(hash(request.node.nodeid)) % 10**8}"


@pytest.fixture
def killed(tiny: Path, name: str) -> Path:
    (tiny / "stacks" / "network" / "main.tf").write_text(_STACK.replace("NAME", name))
    kill_in_the_middle(name)
    return tiny


@pytest.mark.timeout(600)
def test_the_apply_after_a_kill_converges(killed: Path, name: str, capsys: Any) -> None:
    # Given an apply that was killed while it waited for a queue, all else it had made being in no state
    before = there(name)
    assert before == {"vpcs": 1, "subnets": 2, "queues": 1}
    assert infra.outputs("tiny") == {}

    # When its lock is looked at, it is known to be dead, and the lock can be taken away
    (held,) = locks_held()
    assert held["here"] and held["pid"] is None and held["operation"] == "apply"
    assert main.run(["infra", "unlock", "--env", "tiny", "--stack", "network", "--id", held["id"]]) == 0
    assert "the next apply takes in what the dead run had made" in capsys.readouterr().err

    # Then the next apply finds all of it, by its log or by its name, and makes nothing twice
    (result,) = infra.apply("tiny", ["network"])
    taken = {c.address for c in result.summary.items if c.id}
    assert {"aws_vpc.this", 'aws_subnet.this["a"]', "aws_sqs_queue.this"} <= taken
    assert 'aws_route_table_association.this["b"]' in taken  # only known by others' ids
    assert not [c.address for c in result.summary.adds]
    assert there(name) == before

    # And nothing more is to be done or to be remembered
    assert [r.status for r in infra.plan("tiny", ["network"])] == ["unchanged"]
    assert not list((killed.parent / ".sluice" / "terraform" / "tiny" / "network").glob("apply-*.log"))

    # And the code is as it was
    assert [p.name for p in (killed / "stacks" / "network").glob("*.tf")] == ["main.tf"]


@pytest.mark.environments
@pytest.mark.timeout(600)
def test_what_a_killed_apply_made_is_destroyed_with_the_rest(killed: Path, name: str) -> None:
    (held,) = locks_held()
    assert main.run(["infra", "unlock", "--env", "tiny", "--stack", "network", "--id", held["id"]]) == 0
    # Given that nothing of it is in a state, when the stack is destroyed
    infra.destroy("tiny", ["network"], allow_destroy=True)
    # Then nothing is left
    assert there(name) == {"vpcs": 0, "subnets": 0, "queues": 0}
