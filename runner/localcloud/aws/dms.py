"""Database migration whose parts Terraform can read back as it wrote them.

Stock moto 5.2.1 answers times as text, where the DMS API's JSON has seconds since 1970 (every SDK but botocore fails on
it); forgets a subnet group's subnets and keeps its tags under another name than its ARN; and gives unset values back as
null. A task stays in `creating`, where AWS makes it `ready` by itself.
"""

from __future__ import annotations

from datetime import datetime

from moto.dms.models import (
    DatabaseMigrationServiceBackend,
    FakeReplicationInstance,
    FakeReplicationSubnetGroup,
    FakeReplicationTask,
)
from moto.ec2.models import ec2_backends

ENGINE_VERSION = "3.6.1"  # what AWS takes where none is asked for

_stock_create_group = DatabaseMigrationServiceBackend.create_replication_subnet_group
_stock_create_instance = DatabaseMigrationServiceBackend.create_replication_instance
_stock_create_task = DatabaseMigrationServiceBackend.create_replication_task
_stock_list_tags = DatabaseMigrationServiceBackend.list_tags_for_resource
_stock_group = FakeReplicationSubnetGroup.to_dict
_stock_instance = FakeReplicationInstance.to_dict
_stock_task = FakeReplicationTask.to_dict


def install() -> None:
    DatabaseMigrationServiceBackend.create_replication_subnet_group = create_replication_subnet_group
    DatabaseMigrationServiceBackend.create_replication_instance = create_replication_instance
    DatabaseMigrationServiceBackend.create_replication_task = create_replication_task
    DatabaseMigrationServiceBackend.list_tags_for_resource = list_tags_for_resource
    FakeReplicationSubnetGroup.to_dict = group_to_dict
    FakeReplicationInstance.to_dict = instance_to_dict
    FakeReplicationTask.to_dict = task_to_dict


def create_replication_subnet_group(self, **asked):
    group = _stock_create_group(self, **asked)
    group.subnets = [ec2_backends[self.account_id][self.region_name].get_subnet(i) for i in asked["subnet_ids"]]
    return group


def create_replication_instance(self, **asked):
    instance = _stock_create_instance(self, **asked)
    instance.group = self.replication_subnet_groups.get(instance.replication_subnet_group_identifier)
    instance.engine_version = instance.engine_version or ENGINE_VERSION
    if instance.group and not instance.availability_zone:
        instance.availability_zone = instance.group.subnets[0].availability_zone
    return instance


def create_replication_task(self, *asked, **named):
    return _stock_create_task(self, *asked, **named).ready()


def list_tags_for_resource(self, resource_arn_list):
    """A group's ARN ends with `:subgrp:` and its identifier, under which moto keeps its tags."""
    found = []
    for arn in resource_arn_list:
        known = arn.rpartition(":")[2] if ":subgrp:" in arn else arn
        found += [{**tag, "ResourceArn": arn} for tag in _stock_list_tags(self, [known])]
    return found


def group_to_dict(self):
    subnets = [
        {
            "SubnetIdentifier": subnet.id,
            "SubnetAvailabilityZone": {"Name": subnet.availability_zone},
            "SubnetStatus": "Active",
        }
        for subnet in self.subnets
    ]
    return {**_stock_group(self), "VpcId": self.subnets[0].vpc_id, "Subnets": subnets}


def instance_to_dict(self):
    found = plain(_stock_instance(self))
    if self.group:
        found["ReplicationSubnetGroup"] = group_to_dict(self.group)
    return found


def task_to_dict(self):
    return plain(_stock_task(self))


def plain(value):
    """Without what is unset, and with times as seconds."""
    if isinstance(value, dict):
        return {k: seconds(v) if k.endswith(("Time", "Date")) else plain(v) for k, v in value.items() if v is not None}
    return value


def seconds(text: str) -> float:
    return datetime.fromisoformat(f"{text}+00:00" if "+" not in text else text).timestamp()
