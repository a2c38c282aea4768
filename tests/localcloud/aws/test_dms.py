"""Database migration: what its API is documented to answer, and stock moto does not."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from .conftest import Clients


def raw(endpoint: str, operation: str) -> dict[str, Any]:
    """An answer as it goes over the wire: botocore takes times in any form, other SDKs only as numbers."""
    headers = {
        "X-Amz-Target": f"AmazonDMSv20160101.{operation}",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dms/aws4_request, SignedHeaders=host, "
        "Signature=0",
    }
    with urllib.request.urlopen(urllib.request.Request(endpoint, b"{}", headers)) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_what_was_made_is_described_as_it_was_asked_for(clients: Clients, endpoint: str, name: str) -> None:
    # Given two subnets and a migration between them
    ec2, dms = clients("ec2"), clients("dms")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{i}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
        for i, zone in enumerate(("us-east-1a", "us-east-1b"))
    ]
    group = dms.create_replication_subnet_group(
        ReplicationSubnetGroupIdentifier=name,
        ReplicationSubnetGroupDescription="d",
        SubnetIds=subnets,
        Tags=[{"Key": "Env", "Value": "test"}],
    )["ReplicationSubnetGroup"]
    instance = dms.create_replication_instance(
        ReplicationInstanceIdentifier=name,
        ReplicationInstanceClass="dms.t3.medium",
        ReplicationSubnetGroupIdentifier=name,
    )["ReplicationInstance"]
    ends = [
        dms.create_endpoint(EndpointIdentifier=f"{name}-{kind}", EndpointType=kind, EngineName="postgres")["Endpoint"]
        for kind in ("source", "target")
    ]
    dms.create_replication_task(
        ReplicationTaskIdentifier=name,
        SourceEndpointArn=ends[0]["EndpointArn"],
        TargetEndpointArn=ends[1]["EndpointArn"],
        ReplicationInstanceArn=instance["ReplicationInstanceArn"],
        MigrationType="full-load-and-cdc",
        TableMappings="{}",
    )

    # Then the group and the instance in it name those subnets
    for found in (group, instance["ReplicationSubnetGroup"]):
        assert (found["VpcId"], [s["SubnetIdentifier"] for s in found["Subnets"]]) == (vpc, subnets)
    assert instance["AvailabilityZone"] == "us-east-1a" and instance["EngineVersion"]
    # and its tags are found by its ARN
    arn = f"arn:aws:dms:us-east-1:123456789012:subgrp:{name}"
    tags = dms.list_tags_for_resource(ResourceArn=arn)["TagList"]
    assert [(t["Key"], t["Value"]) for t in tags] == [("Env", "test")]
    # and the task is ready, with times as numbers and nothing that is null
    (task,) = (t for t in raw(endpoint, "DescribeReplicationTasks")["ReplicationTasks"] if t["Status"] == "ready")
    assert isinstance(task["ReplicationTaskCreationDate"], float) and None not in task.values()
    (seen,) = raw(endpoint, "DescribeReplicationInstances")["ReplicationInstances"]
    assert isinstance(seen["InstanceCreateTime"], float) and None not in seen.values()
