"""What a killed apply made and no state knows: found in its log, and taken in by the next plan.

Terraform writes the remote state only every 20 seconds or so. What it made after the last write would be made once
more by the next apply, or be in its way by its name. But its log says of each resource that it was begun, and of
each that was done by which id; and what was only begun can be found by its name, if it has one that is its own.
So the next plan imports them. Of an address that turns out not to exist, nothing is imported: it is made.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runner.deployctl.messages import TerraformError, parse
from runner.deployctl.run import OnMessage
from runner.deployctl.terraform import Plan, Workspace

# Types whose import id is not the id of the log, from their planned attributes.
COMPOSED = {
    "aws_autoscaling_lifecycle_hook": "{autoscaling_group_name}/{name}",
    "aws_autoscaling_policy": "{autoscaling_group_name}/{name}",
    "aws_autoscaling_schedule": "{autoscaling_group_name}/{scheduled_action_name}",
    "aws_cloudwatch_event_target": "{rule}/{target_id}",
    "aws_dms_endpoint": "{endpoint_id}",
    "aws_dms_replication_instance": "{replication_instance_id}",
    "aws_dms_replication_task": "{replication_task_id}",
    "aws_dms_replication_subnet_group": "{replication_subnet_group_id}",
    "aws_iam_role_policy_attachment": "{role}/{policy_arn}",
    "aws_route": "{route_table_id}_{destination_cidr_block}",
    "aws_route_table_association": "{subnet_id}/{route_table_id}",
    "aws_volume_attachment": "{device_name}:{volume_id}:{instance_id}",
}
# Types whose name is their own in the account and their import id: they can be found though their id is not known.
NAMED = {
    "aws_autoscaling_group": "{name}",
    "aws_cloudwatch_event_rule": "{name}",
    "aws_cloudwatch_log_group": "{name}",
    "aws_cloudwatch_metric_alarm": "{alarm_name}",
    "aws_db_instance": "{identifier}",
    "aws_db_parameter_group": "{name}",
    "aws_db_subnet_group": "{name}",
    "aws_elasticache_parameter_group": "{name}",
    "aws_elasticache_replication_group": "{replication_group_id}",
    "aws_elasticache_subnet_group": "{name}",
    "aws_iam_instance_profile": "{name}",
    "aws_iam_role": "{name}",
    "aws_iam_role_policy": "{role}:{name}",
    "aws_kms_alias": "{name}",
    "aws_redshiftserverless_namespace": "{namespace_name}",
    "aws_redshiftserverless_workgroup": "{workgroup_name}",
    "aws_s3_bucket": "{bucket}",
    "aws_ssm_parameter": "{name}",
}


def _in_vpc(name: str, value: str) -> dict[str, Any]:
    """EC2's way to ask for what has this value in the VPC of the resource."""
    return {"Filters": [{"Name": "vpc-id", "Values": ["{vpc_id}"]}, {"Name": name, "Values": [value]}]}


def _tagged(*more: dict[str, Any]) -> dict[str, Any]:
    """EC2's way to ask for what has the resource's name and environment as its tags."""
    tags = ("Name", "Env")
    return {"Filters": [*({"Name": f"tag:{tag}", "Values": [f"{{tags_all[{tag}]}}"]} for tag in tags), *more]}


# Types whose id is not their name, and that take their time to be made: service, call, its arguments, and the names
# of the list in the answer ("": the answer itself), of the id and of the state in it.
SEARCHED: dict[str, tuple[str, str, dict[str, Any], str, str, str]] = {
    "aws_sqs_queue": ("sqs", "get_queue_url", {"QueueName": "{name}"}, "", "QueueUrl", ""),
    "aws_lb_target_group": (
        "elbv2",
        "describe_target_groups",
        {"Names": ["{name}"]},
        "TargetGroups",
        "TargetGroupArn",
        "",
    ),
    "aws_secretsmanager_secret": ("secretsmanager", "describe_secret", {"SecretId": "{name}"}, "", "ARN", ""),
    "aws_launch_template": (
        "ec2",
        "describe_launch_templates",
        {"LaunchTemplateNames": ["{name}"]},
        "LaunchTemplates",
        "LaunchTemplateId",
        "",
    ),
    "aws_flow_log": (
        "ec2",
        "describe_flow_logs",
        {"Filter": [{"Name": "resource-id", "Values": ["{vpc_id}"]}]},
        "FlowLogs",
        "FlowLogId",
        "",
    ),
    "aws_internet_gateway": (
        "ec2",
        "describe_internet_gateways",
        _tagged(),  # it may not be attached yet
        "InternetGateways",
        "InternetGatewayId",
        "",
    ),
    "aws_ebs_volume": ("ec2", "describe_volumes", _tagged(), "Volumes", "VolumeId", "State"),
    "aws_eip": ("ec2", "describe_addresses", _tagged(), "Addresses", "AllocationId", ""),
    "aws_route_table": (
        "ec2",
        "describe_route_tables",
        _tagged({"Name": "vpc-id", "Values": ["{vpc_id}"]}),
        "RouteTables",
        "RouteTableId",
        "",
    ),
    "aws_vpc": ("ec2", "describe_vpcs", _tagged(), "Vpcs", "VpcId", ""),
    "aws_subnet": ("ec2", "describe_subnets", _in_vpc("cidr-block", "{cidr_block}"), "Subnets", "SubnetId", ""),
    "aws_security_group": (
        "ec2",
        "describe_security_groups",
        _in_vpc("group-name", "{name}"),
        "SecurityGroups",
        "GroupId",
        "",
    ),
    "aws_lb": ("elbv2", "describe_load_balancers", {"Names": ["{name}"]}, "LoadBalancers", "LoadBalancerArn", ""),
    "aws_nat_gateway": (
        "ec2",
        "describe_nat_gateways",
        {"Filter": [{"Name": "subnet-id", "Values": ["{subnet_id}"]}]},
        "NatGateways",
        "NatGatewayId",
        "State",
    ),
    "aws_vpc_endpoint": (
        "ec2",
        "describe_vpc_endpoints",
        _in_vpc("service-name", "{service_name}"),
        "VpcEndpoints",
        "VpcEndpointId",
        "State",
    ),
}
GROUP = "aws_security_group"
RULES = ("aws_vpc_security_group_ingress_rule", "aws_vpc_security_group_egress_rule")
_OTHER_ENDS = ("cidr_ipv4", "cidr_ipv6", "prefix_list_id", "referenced_security_group_id")
_GONE = ("deleting", "deleted", "failed")
# Takes a service's name and gives a client of it.
Clients = Callable[[str], Any]


@dataclass(frozen=True)
class Made:
    """A resource that an apply began to make; `id` is "" if its log does not say that it was done."""

    address: str
    type: str
    id: str = ""


def made(lines: Iterable[str]) -> list[Made]:
    """What an apply's log says that it made, or began to. Pure."""
    found: dict[str, Made] = {}
    for line in lines:
        message = parse(line)
        if message is None or message.action != "create" or not message.address:
            continue
        hook = message.raw.get("hook", {})
        kind = str(hook.get("resource", {}).get("resource_type", ""))
        if message.kind == "apply_errored":
            found.pop(message.address, None)
        elif message.kind == "apply_start":
            found[message.address] = Made(message.address, kind)
        elif message.kind == "apply_complete" and hook.get("id_key") == "id":
            found[message.address] = Made(message.address, kind, str(hook.get("id_value", "")))
    return list(found.values())


def begun(space: Workspace) -> list[Made]:
    """What killed applies of this stack made or began to, each address once; its state may have it or not."""
    lines = (row for log in space.abandoned_applies() for row in log.read_text(errors="replace").splitlines())
    return [m for m in made(lines) if not m.type.startswith("terraform_")]  # those are in the state alone


def orphans(space: Workspace) -> list[Made]:
    """What killed applies of this stack made and its state does not have. Forgets logs that say nothing more."""
    logs = space.abandoned_applies()
    found = begun(space) if logs else []
    if found:
        known = {r.address for r in space.resources()}
        found = [m for m in found if m.address not in known]
    if not found:
        space.forget(logs)
    return found


def plan(
    space: Workspace,
    found: Sequence[Made],
    clients: Clients,
    variables: Mapping[str, Any],
    on_message: OnMessage | None = None,
    *,
    refresh: bool = True,
) -> Plan:
    """Plan with imports of all that killed applies made and that is there. Errors as Workspace.plan()."""
    return _search(space, found, clients, variables, on_message, refresh=refresh)[0]


def adopt(
    space: Workspace,
    found: Sequence[Made],
    clients: Clients,
    variables: Mapping[str, Any],
    on_message: OnMessage | None = None,
) -> None:
    """Take all that killed applies made and that is there into the state, and do nothing else. Errors as apply()."""
    plan, imports = _search(space, found, clients, variables, on_message, targets=[m.address for m in found])
    if plan.summary.adds:  # what is not there is not to be made
        plan.discard()
        if not imports:
            return
        plan = space.plan(variables, on_message, imports=imports, targets=list(imports), details=False)
    space.apply(plan, on_message)


def _search(
    space: Workspace,
    found: Sequence[Made],
    clients: Clients,
    variables: Mapping[str, Any],
    on_message: OnMessage | None,
    *,
    targets: Sequence[str] = (),
    refresh: bool = True,
) -> tuple[Plan, dict[str, str]]:
    """A plan with all the imports that can be made, and these, by address."""
    known = {r.id for r in space.resources()}
    imports = {m.address: m.id for m in found if m.id and m.type not in COMPOSED}
    tried: dict[str, str] = dict(imports)
    while True:
        try:
            plan = space.plan(variables, on_message, imports=imports, targets=targets, refresh=refresh, details=False)
        except TerraformError as e:
            wrong = named(e, imports)
            if not wrong:
                raise
            imports = {a: i for a, i in imports.items() if a not in wrong}
            continue
        # With the first ones in their place, the attributes by which the others are found are known.
        more = {}
        rest = [m for m in found if m.address not in tried]
        groups = {imports[m.address] for m in found if m.type == GROUP and m.address in imports}
        document = space.show(plan.file) if rest or groups else {}
        values = _planned_values(document)
        rest += [m for m in rules_of(groups, document) if m.address not in tried and m not in rest]
        for m in rest:
            import_id = find(m, values.get(m.address, {}), clients, known | set(imports.values()))
            if import_id:
                more[m.address] = import_id
        if not more:
            return plan, imports
        plan.discard()
        tried |= more
        imports |= more


def find(begun: Made, values: Mapping[str, Any], clients: Clients, taken: Iterable[str] = ()) -> str:
    """The import id of a resource, from its planned attributes; "" if it cannot be told."""
    template = COMPOSED.get(begun.type) or NAMED.get(begun.type, "")
    if template:
        return fill(template, values)
    if begun.type in RULES:
        return _rule(begun, values, clients, taken)
    if begun.type not in SEARCHED:
        return ""
    service, call, arguments, listed, id_name, state = SEARCHED[begun.type]
    filled = _fill_all(arguments, values)
    if filled is None:
        return ""
    from botocore.exceptions import ClientError

    try:
        answer = getattr(clients(service), call)(**filled)
    except ClientError:  # of a load balancer that is not there, AWS says so with an error
        return ""
    there = [
        str(o[id_name]) for o in (answer[listed] if listed else [answer]) if str(o.get(state, "")).lower() not in _GONE
    ]
    free = [i for i in there if i not in taken]
    return free[0] if len(free) == 1 else ""  # of two, neither is known to be ours


def _rule(begun: Made, values: Mapping[str, Any], clients: Clients, taken: Iterable[str]) -> str:
    """The id of a group's rule: no two have the same direction, protocol, ports and other end."""
    group = values.get("security_group_id")
    if not group:
        return ""
    pages = clients("ec2").get_paginator("describe_security_group_rules")
    wanted = (
        begun.type.endswith("egress_rule"),
        str(values.get("ip_protocol")),
        *(-1 if values.get(port) is None else values[port] for port in ("from_port", "to_port")),
        next((values[end] for end in _OTHER_ENDS if values.get(end)), None),
    )
    found = [
        str(rule["SecurityGroupRuleId"])
        for page in pages.paginate(Filters=[{"Name": "group-id", "Values": [group]}])
        for rule in page["SecurityGroupRules"]
        if _said(rule) == wanted
    ]
    free = [i for i in found if i not in taken]
    return free[0] if len(free) == 1 else ""


def _said(rule: Mapping[str, Any]) -> tuple[Any, ...]:
    group = rule.get("ReferencedGroupInfo", {}).get("GroupId")
    other = rule.get("CidrIpv4") or rule.get("CidrIpv6") or rule.get("PrefixListId") or group
    ports = (rule.get("FromPort", -1), rule.get("ToPort", -1))
    return (rule["IsEgress"], str(rule["IpProtocol"]), *ports, other)


def fill(template: str, values: Mapping[str, Any]) -> str:
    """A template with the values in it; "" if one of them is not known."""
    formatter = string.Formatter()
    try:
        found = [formatter.get_field(name, (), values)[0] for _, name, _, _ in formatter.parse(template) if name]
    except (KeyError, TypeError):  # a tag that is not there; tags that are not known
        return ""
    return template.format_map(values) if all(v not in (None, "") for v in found) else ""


def named(error: TerraformError, imports: Mapping[str, str]) -> set[str]:
    """The imports that the errors of a run speak of."""
    # Terraform quotes some addresses as a Go string, with a backslash before each quote of a key.
    said = " ".join(f"{d.address} {d.summary} {d.detail}" for d in error.diagnostics).replace('\\"', '"')
    # An address is not a part of another one, which would go on with a letter, a dot or a bracket.
    return {a for a in imports if any(f"{a}{end}" in f"{said} " for end in ('"', " ", ",", "\n"))}


def _planned_values(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The known attributes of what a plan would create, by address."""
    return {
        r["address"]: r["change"].get("after") or {}
        for r in document.get("resource_changes", ())
        if r["change"].get("actions") == ["create"]
    }


def rules_of(groups: Collection[str], document: Mapping[str, Any]) -> list[Made]:
    """The rules of these security groups that a plan would make.

    AWS gives a new group a rule of its own, which Terraform takes away next. A kill between the two leaves it in the
    way of one that says the same, although that was never begun.
    """
    creates = [r for r in document.get("resource_changes", ()) if r["change"].get("actions") == ["create"]]
    return [
        Made(r["address"], r["type"])
        for r in creates
        if r["type"] in RULES and (r["change"].get("after") or {}).get("security_group_id") in groups
    ]


def _fill_all(value: Any, values: Mapping[str, Any]) -> Any:
    """The same structure with all its templates filled; None if one cannot be."""
    if isinstance(value, str):
        return fill(value, values) if "{" in value else value
    if isinstance(value, list):
        filled = [_fill_all(v, values) for v in value]
        return filled if all(filled) else None
    found = {k: _fill_all(v, values) for k, v in value.items()}
    return found if all(found.values()) else None
