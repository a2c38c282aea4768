"""Replication groups (cluster mode off) that Terraform can create, read, change and destroy.

Stock moto 5.2.1 names member clusters that do not exist, makes one of them however many were asked for,
knows no parameter groups and no ModifyReplicationGroup, and keeps a deleted group in state "deleting" for
ever. On AWS each member is a cache cluster of its own, which is where the provider reads most settings.
"""

from __future__ import annotations

import re
from typing import Any

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import utcnow
from moto.elasticache import models, urls
from moto.elasticache.responses import ElastiCacheResponse

_stock_create = models.ElastiCacheBackend.create_replication_group
_stock_init = models.ElastiCacheBackend.__init__


def install() -> None:
    models.ElastiCacheBackend.__init__ = init_backend
    models.ElastiCacheBackend.create_replication_group = create_replication_group
    models.ElastiCacheBackend.delete_replication_group = delete_replication_group
    # Empty, it would be sent and read as a secondary of a global group.
    models.ReplicationGroup.global_replication_group_info = None
    urls.url_paths = dict.fromkeys(urls.url_paths, Api.dispatch)


class ParameterGroupNotFound(ServiceException):
    code = "CacheParameterGroupNotFound"

    def __init__(self, name: str) -> None:
        super().__init__(f"CacheParameterGroup not found: {name}")


class ParameterGroup:
    is_global = False

    def __init__(self, arn: str, name: str, family: str, description: str) -> None:
        self.arn = arn
        self.cache_parameter_group_name = name
        self.cache_parameter_group_family = family
        self.description = description
        self.parameters: dict[str, str] = {}


class Member:
    """The cache cluster behind one member: the settings of its group, as they are now."""

    cache_cluster_status = "available"
    num_cache_nodes = 1

    def __init__(self, group: models.ReplicationGroup, member: dict[str, Any]) -> None:
        self._group, self._member = group, member
        self.cache_cluster_id = member["cache_cluster_id"]
        self.cache_cluster_create_time = utcnow()
        self.arn = group.arn.replace(
            f"replicationgroup:{group.replication_group_id}", f"cluster:{self.cache_cluster_id}"
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._group, name)

    @property
    def preferred_availability_zone(self) -> str:
        return self._member["preferred_availability_zone"]

    @property
    def cache_parameter_group(self) -> dict[str, str]:
        name = self._group.cache_parameter_group_name
        return {"CacheParameterGroupName": name, "ParameterApplyStatus": "in-sync"}

    @property
    def security_groups(self) -> list[dict[str, str]]:
        return [{"SecurityGroupId": i, "Status": "active"} for i in self._group.security_group_ids or []]

    @property
    def cache_nodes(self) -> list[dict[str, Any]]:
        return [
            {
                "CacheNodeId": "0001",
                "CacheNodeStatus": "available",
                "CacheNodeCreateTime": self.cache_cluster_create_time,
                "Endpoint": self._member["read_endpoint"],
                "CustomerAvailabilityZone": self.preferred_availability_zone,
            }
        ]


def init_backend(self, region_name: str, account_id: str) -> None:
    _stock_init(self, region_name, account_id)
    self.cache_parameter_groups = {}
    # Stock moto refuses to list the tags of a parameter group.
    self.arn_regex = re.compile(
        r"^arn:aws:elasticache:.*:[0-9]*:(cluster|snapshot|subnetgroup|replicationgroup|parametergroup|user):.*$"
    )


def create_replication_group(self, **asked) -> models.ReplicationGroup:
    if not asked["replicas_per_node_group"]:
        asked["replicas_per_node_group"] = (asked["num_cache_clusters"] or 1) - 1
    group = _stock_create(self, **asked)
    group.cluster_enabled = False
    group.port = int(group.port)
    group.engine_version = _full_version(group.engine_version or "8.0")
    group.auto_minor_version_upgrade = str(asked["auto_minor_version_upgrade"]).lower() != "false"
    group.transit_encryption_mode = "required" if group.transit_encryption_enabled else None
    group.preferred_maintenance_window = group.preferred_maintenance_window or "sun:05:00-sun:06:00"
    self.cache_clusters.update(
        (m["cache_cluster_id"], Member(group, m)) for m in group.node_groups[0]["node_group_members"]
    )
    return group


def delete_replication_group(self, replication_group_id, retain_primary_cluster=None):
    group = self.describe_replication_groups(replication_group_id)[0]
    del self.replication_groups[replication_group_id]
    for cluster in group.member_clusters:
        self.cache_clusters.pop(cluster, None)
    group.status = "deleting"
    return group


def _full_version(version: str) -> str:
    """AWS reports three places of what may be given as one or two."""
    return ".".join([*version.split("."), "0", "0"][:3])


class Api(ElastiCacheResponse):
    """One request. What is not here is answered by moto."""

    CHANGEABLE = {
        "ReplicationGroupDescription": "description",
        "CacheNodeType": "cache_node_type",
        "CacheParameterGroupName": "cache_parameter_group_name",
        "PreferredMaintenanceWindow": "preferred_maintenance_window",
        "SecurityGroupIds": "security_group_ids",
        "SnapshotRetentionLimit": "snapshot_retention_limit",
        "SnapshotWindow": "snapshot_window",
    }

    def modify_replication_group(self) -> ActionResult:
        asked = self._get_params()
        group = self.elasticache_backend.describe_replication_groups(asked["ReplicationGroupId"])[0]
        for name, attribute in self.CHANGEABLE.items():
            if asked.get(name) not in (None, []):
                setattr(group, attribute, asked[name])
        if asked.get("EngineVersion"):
            group.engine_version = _full_version(asked["EngineVersion"])
        for name, attribute in {"AutomaticFailoverEnabled": "automatic_failover", "MultiAZEnabled": "multi_az"}.items():
            if asked.get(name) is not None:
                setattr(group, attribute, "enabled" if self._get_bool_param(name) else "disabled")
        if asked.get("AuthToken"):
            group.auth_token_enabled = True
            group.auth_token_last_modified_date = utcnow()
        return ActionResult({"ReplicationGroup": group})

    def create_cache_parameter_group(self) -> ActionResult:
        backend, name = self.elasticache_backend, self._get_param("CacheParameterGroupName")
        arn = f"arn:aws:elasticache:{backend.region_name}:{backend.account_id}:parametergroup:{name}"
        family, description = self._get_param("CacheParameterGroupFamily"), self._get_param("Description")
        group = ParameterGroup(arn, name, family, description)
        backend.cache_parameter_groups[name] = group
        backend.tagging_service.tag_resource(arn, self._get_param("Tags", []))
        return ActionResult({"CacheParameterGroup": group})

    def describe_cache_parameter_groups(self) -> ActionResult:
        if self._get_param("CacheParameterGroupName"):
            return ActionResult({"CacheParameterGroups": [self._parameter_group()]})
        return ActionResult({"CacheParameterGroups": list(self.elasticache_backend.cache_parameter_groups.values())})

    def describe_cache_parameters(self) -> ActionResult:
        shown = [
            {"ParameterName": k, "ParameterValue": v, "Source": "user", "IsModifiable": True}
            for k, v in self._parameter_group().parameters.items()
        ]
        return ActionResult({"Parameters": shown})

    def modify_cache_parameter_group(self) -> ActionResult:
        group = self._parameter_group()
        for parameter in self._get_param("ParameterNameValues", []):
            group.parameters[parameter["ParameterName"]] = parameter["ParameterValue"]
        return ActionResult({"CacheParameterGroupName": group.cache_parameter_group_name})

    def reset_cache_parameter_group(self) -> ActionResult:
        group = self._parameter_group()
        if self._get_bool_param("ResetAllParameters"):
            group.parameters.clear()
        for parameter in self._get_param("ParameterNameValues", []):
            group.parameters.pop(parameter["ParameterName"], None)
        return ActionResult({"CacheParameterGroupName": group.cache_parameter_group_name})

    def delete_cache_parameter_group(self) -> ActionResult:
        del self.elasticache_backend.cache_parameter_groups[self._parameter_group().cache_parameter_group_name]
        return EmptyResult()

    def delete_cache_subnet_group(self) -> ActionResult:
        name = self._get_param("CacheSubnetGroupName")
        if self.elasticache_backend.cache_subnet_groups.pop(name, None) is None:
            raise models.CacheSubnetGroupNotFound(name)
        return EmptyResult()

    def _parameter_group(self) -> ParameterGroup:
        name = self._get_param("CacheParameterGroupName")
        if name not in self.elasticache_backend.cache_parameter_groups:
            raise ParameterGroupNotFound(name)
        return self.elasticache_backend.cache_parameter_groups[name]
