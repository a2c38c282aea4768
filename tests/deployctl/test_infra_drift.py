"""What a stack costs, and what somebody changed behind its back: on the real provider and the emulated AWS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runner.deployctl import environment, infra, main

pytestmark = pytest.mark.terraform

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
resource "aws_cloudwatch_log_group" "this" {
  for_each          = toset(["kept", "changed", "gone"])
  name              = "drift-${each.key}"
  retention_in_days = 7
}
resource "aws_secretsmanager_secret" "this" {
  name                    = "drift"
  recovery_window_in_days = 0
}
"""


@pytest.mark.timeout(300)
def test_cost_before_and_drift_after(tiny: Path, capsys: Any) -> None:
    (tiny / "stacks" / "network" / "main.tf").write_text(_STACK)
    here = ["--env", "tiny", "--stack", "network"]

    # Given a stack that is not there yet, its plan says what it would cost
    assert main.run(["infra", "plan", "--cost", "--json", *here]) == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert planned["cost"]["monthly_before"] == 0 and planned["cost"]["monthly_after"] == 0.4
    assert planned["cost"]["resources"] == {"aws_secretsmanager_secret.this": 0.4}

    # When it is applied, nothing has drifted
    infra.apply("tiny", ["network"])
    assert main.run(["infra", "drift", *here]) == 0

    # When somebody changes one thing and removes another
    env = environment.load("tiny")
    logs = environment.client("logs", env, environment.process_environ(env))
    logs.put_retention_policy(logGroupName="drift-changed", retentionInDays=30)
    logs.delete_log_group(logGroupName="drift-gone")

    # Then both are told, by an exit status of their own, and nothing was changed, nor the state
    capsys.readouterr()
    assert main.run(["infra", "drift", *here]) == infra.DRIFTED
    table = capsys.readouterr().out
    assert 'aws_cloudwatch_log_group.this["changed"]' in table and "retention_in_days" in table
    assert 'aws_cloudwatch_log_group.this["gone"]' in table and "kept" not in table
    assert main.run(["infra", "drift", "--json", *here]) == infra.DRIFTED
    (found,) = json.loads(capsys.readouterr().out)
    assert found["status"] == "drifted"
    assert found["change"][0]["fields"] == {"retention_in_days": ["7", "30"]}
    assert found["destroy"] == ['aws_cloudwatch_log_group.this["gone"]']

    # And an apply puts it right
    (result,) = infra.apply("tiny", ["network"])
    assert result.summary.line() == "1 to add, 1 to change"
    assert main.run(["infra", "drift", *here]) == 0
