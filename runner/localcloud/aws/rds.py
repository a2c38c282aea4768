"""RDS instances that re-plan clean, with a password of their own.

Stock moto 5.2.1 drops performance insights and enhanced monitoring at creation; reports no standby zone; lists
parameters without the `Source` by which the provider finds the ones a user set; lacks ResetDBParameterGroup; makes
another secret whenever it is told again to manage the password; and gives every managed master password the same value,
and every instance the same resource id, by which Terraform looks for it: of two databases it finds neither. On AWS that
id is the instance's own.
"""

from __future__ import annotations

import json
import secrets

from moto.core.responses import ActionResult
from moto.rds.models import MasterUserSecret, RDSBackend
from moto.rds.responses import RDSResponse

KEPT = (
    "monitoring_interval",
    "monitoring_role_arn",
    "performance_insights_kms_key_id",
    "performance_insights_retention_period",
)

RESOURCE_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"

_stock_create = RDSBackend.create_db_instance
_stock_modify = RDSBackend.modify_db_instance
_stock_parameters = RDSResponse.describe_db_parameters


def install() -> None:
    RDSBackend.create_db_instance = create_db_instance
    RDSBackend.modify_db_instance = modify_db_instance
    MasterUserSecret._generate_secret_string = master_secret
    RDSResponse.describe_db_parameters = describe_db_parameters
    RDSResponse.reset_db_parameter_group = reset_db_parameter_group


def create_db_instance(self, asked):
    database = _stock_create(self, asked)
    database.dbi_resource_id = "db-" + "".join(secrets.choice(RESOURCE_ID_LETTERS) for _ in range(26))
    _keep(database, asked)
    if database.multi_az:
        zone = database.availability_zone
        database.secondary_availability_zone = zone[:-1] + ("a" if zone.endswith("b") else "b")
    return database


def modify_db_instance(self, identifier, asked):
    # It is turned on where it was off; where it is on, the secret stays the one it is.
    known = self.databases.get(identifier)
    if known is not None and known.manage_master_user_password and asked.get("manage_master_user_password"):
        asked = {k: v for k, v in asked.items() if k != "manage_master_user_password"}
    database = _stock_modify(self, identifier, asked)
    _keep(database, asked)
    return database


def _keep(database, asked) -> None:
    for name in KEPT:
        if asked.get(name) is not None:
            setattr(database, name, asked[name])
    if asked.get("enable_performance_insights") is not None:
        database.performance_insights_enabled = asked["enable_performance_insights"]
        if not getattr(database, "performance_insights_retention_period", None):
            database.performance_insights_retention_period = 7  # days, the default


def master_secret(self) -> str:
    return json.dumps({"username": self.resource.master_username, "password": secrets.token_urlsafe(24)})


def describe_db_parameters(self):
    wanted = self.params.get("Source")
    known = {"Source": "user", "ApplyMethod": "immediate", "IsModifiable": True}
    parameters = [{**known, **p} for p in _stock_parameters(self).result["Parameters"]]
    return ActionResult({"Parameters": [p for p in parameters if wanted in (None, p["Source"])]})


def reset_db_parameter_group(self):
    name = self.params.get("DBParameterGroupName")
    group = self.backend.describe_db_parameter_groups({"db_parameter_group_name": name})[0]
    if self.params.get("ResetAllParameters"):
        group.parameters.clear()
    for parameter in self.params.get("Parameters", []):
        group.parameters.pop(parameter.original_dict()["ParameterName"], None)
    return ActionResult({"DBParameterGroupName": name})
