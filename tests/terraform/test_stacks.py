"""The network and workers stacks of the environment `local`, applied for real."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from .conftest import Clients, Terraform

# The first test pays for the applies, on a machine that may be busy.
pytestmark = [pytest.mark.terraform, pytest.mark.timeout(900)]

DEFAULT = "sluice-local-worker-default"


def group(clients: Clients, name: str) -> dict[str, object]:
    found: list[dict[str, object]] = clients("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[name])[
        "AutoScalingGroups"
    ]
    return found[0]


def test_applied_stacks_plan_no_change(terraform: Terraform) -> None:
    with ThreadPoolExecutor(2) as pool:
        plans = pool.map(
            lambda stack: terraform(stack, "plan", "-detailed-exitcode", ok=(0, 2)), ("network", "workers")
        )
    assert [code for code, _ in plans] == [0, 0]


def test_instances_wait_for_their_launch_hook_with_release_and_settings(terraform: Terraform, clients: Clients) -> None:
    ec2 = clients("ec2")
    filters = [{"Name": "tag:aws:autoscaling:groupName", "Values": [DEFAULT]}]
    reservations = ec2.describe_instances(Filters=filters)["Reservations"]
    instances = [i for r in reservations for i in r["Instances"]]
    tags = [{t["Key"]: t["Value"] for t in i["Tags"]} for i in instances]
    assert len(instances) == 2
    for found in tags:
        wanted = {"Env": "local", "Role": "worker", "Pool": "default", "Release": "0123456789ab", "Name": DEFAULT}
        assert found.items() >= wanted.items()

    members = clients("autoscaling").describe_auto_scaling_instances()["AutoScalingInstances"]
    assert {m["LifecycleState"] for m in members} == {"Pending:Wait"}
    assert all(m["ProtectedFromScaleIn"] for m in members)

    data = ec2.describe_instance_attribute(InstanceId=instances[0]["InstanceId"], Attribute="userData")["UserData"]
    text = base64.b64decode(data["Value"]).decode()
    assert text.startswith("#cloud-config\n")
    files = {f["path"]: f["content"] for f in yaml.safe_load(text)["write_files"]}
    settings = dict(line.split("=", 1) for line in files["/etc/sluice/node.env"].splitlines())
    assert settings == {
        "AWS_REGION": "us-east-1",
        "SLUICE_ENV": "local",
        "SLUICE_ROLE": "worker",
        "SLUICE_POOL": "default",
        "SLUICE_QUEUES": "default",
        "SLUICE_SLOTS": "4",
        "SLUICE_DATABASE_URL": "postgresql://host:5432/db",
        "SLUICE_DATABASE_SECRET": "",
        "SLUICE_BROKER_URL": "redis://host:6379/0",
        "SLUICE_BROKER_SECRET": "",
        "SLUICE_ARTIFACTS_URL": "s3://sluice-local-artifacts-123456789012",
        "SLUICE_STORAGE_URL": "s3://sluice-local-storage-123456789012",
        "SLUICE_DRAIN_SECONDS": "120",
        "SLUICE_GROUP": DEFAULT,
    }


def test_instances_answer_only_imds_v2_and_show_their_tags_to_themselves(
    clients: Clients, terraform: Terraform
) -> None:
    versions = clients("ec2").describe_launch_template_versions(LaunchTemplateName=DEFAULT)["LaunchTemplateVersions"]
    options = versions[-1]["LaunchTemplateData"]["MetadataOptions"]
    assert (options["HttpTokens"], options["InstanceMetadataTags"]) == ("required", "enabled")
    assert "KeyName" not in versions[-1]["LaunchTemplateData"]


def test_hooks_abandon_and_outlast_the_drain(terraform: Terraform, clients: Clients) -> None:
    hooks = clients("autoscaling").describe_lifecycle_hooks(AutoScalingGroupName=DEFAULT)["LifecycleHooks"]
    assert {h["LifecycleHookName"]: h["DefaultResult"] for h in hooks} == {"launch": "ABANDON", "terminate": "ABANDON"}
    terminate = next(h for h in hooks if h["LifecycleHookName"] == "terminate")
    assert terminate["GlobalTimeout"] > 120


def test_bad_numbers_of_workers_are_refused_in_words(terraform: Terraform) -> None:
    _, text = terraform("workers", "plan", "-var", "workers={default=-1,cpu=99,gpu=1}", ok=(1,))
    words = " ".join(text.replace("│", " ").split())
    assert "workers must be whole numbers from 0 up" in words and "default = -1" in words
    assert "workers above the pool's max_workers" in words and "cpu = 99 of 3" in words
    assert "workers names a pool that does not exist: gpu. The pools are cpu, default." in words


def test_from_one_to_a_hundred_workers_is_one_changed_resource(terraform: Terraform) -> None:
    values = terraform.tree / "envs" / "local" / "workers.tfvars"
    before = values.read_text()
    assert before.count("workers = 1, max_workers = 3,") == 1
    values.write_text(before.replace("workers = 1, max_workers = 3,", "workers = 100, max_workers = 100,"))
    try:
        changes, _ = terraform.plan("workers")
    finally:
        values.write_text(before)
    assert changes == {'module.pool["cpu"].aws_autoscaling_group.this': ["update"]}


def test_a_bump_of_workers_changes_one_resource_and_launches(terraform: Terraform, clients: Clients) -> None:
    changes, plan = terraform.plan("workers", "-var", "workers={default=3}")
    assert changes == {'module.pool["default"].aws_autoscaling_group.this': ["update"]}
    terraform("workers", "apply", plan)
    found = group(clients, DEFAULT)
    assert (found["MinSize"], found["DesiredCapacity"]) == (3, 3)
    assert len(found["Instances"]) == 3  # type: ignore[arg-type]
