"""What a killed apply's log says, and how what it made is found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.validate import ParamValidator

from runner.deployctl import messages, planned, recovery, run, statefile, terraform
from runner.deployctl.recovery import Made


def line(kind: str, address: str, action: str = "create", made_id: str = "") -> str:
    hook: dict[str, Any] = {"resource": {"addr": address, "resource_type": address.split(".")[-2]}, "action": action}
    if made_id:
        hook |= {"id_key": "id", "id_value": made_id}
    return json.dumps({"@message": "m", "type": kind, "hook": hook})


def test_what_was_done_has_its_id_and_what_was_begun_has_none() -> None:
    found = recovery.made(
        [
            line("apply_start", "aws_vpc.a"),
            line("apply_complete", "aws_vpc.a", made_id="vpc-1"),
            line("apply_start", "module.db.aws_db_instance.b"),
            line("apply_start", "aws_vpc.failed"),
            line("apply_errored", "aws_vpc.failed"),
            line("apply_start", "aws_vpc.gone", action="delete"),
            line("apply_start", "aws_vpc.changed", action="update"),
            '{"@message": "half a li',
        ]
    )
    assert found == [Made("aws_vpc.a", "aws_vpc", "vpc-1"), Made("module.db.aws_db_instance.b", "aws_db_instance")]


def test_a_state_is_read_with_modules_and_keys() -> None:
    document = {
        "resources": [
            {"mode": "data", "type": "aws_ami", "name": "x", "instances": [{}]},
            {
                "mode": "managed",
                "module": 'module.pool["cpu"]',
                "type": "aws_subnet",
                "name": "s",
                "instances": [
                    {"index_key": 0, "attributes": {"id": "subnet-1"}},
                    {"index_key": "b", "attributes": {"id": "subnet-2"}},
                    {"index_key": "b", "deposed": "abc", "attributes": {"id": "subnet-3"}},
                ],
            },
        ]
    }
    assert statefile.resources(document) == [
        statefile.Resource('module.pool["cpu"].aws_subnet.s[0]', "aws_subnet", "subnet-1"),
        statefile.Resource('module.pool["cpu"].aws_subnet.s["b"]', "aws_subnet", "subnet-2"),
    ]


def test_a_name_or_several_attributes_make_an_import_id_once_they_are_known() -> None:
    def no_clients(service: str) -> Any:
        raise AssertionError(service)

    association = Made("aws_route_table_association.a", "aws_route_table_association", "rtbassoc-1")
    assert recovery.find(association, {"subnet_id": "s"}, no_clients) == ""
    assert recovery.find(association, {"subnet_id": "s", "route_table_id": "r"}, no_clients) == "s/r"
    assert recovery.find(Made("aws_db_instance.d", "aws_db_instance"), {"identifier": "main"}, no_clients) == "main"
    assert recovery.find(Made("aws_vpc.v", "aws_vpc"), {"cidr_block": "10.0.0.0/16"}, no_clients) == ""
    assert recovery.find(Made("aws_vpc.v", "aws_vpc"), {"tags_all": {"Env": "dev"}}, no_clients) == ""
    assert recovery.find(Made("aws_kms_key.k", "aws_kms_key"), {"description": "x"}, no_clients) == ""


def test_one_without_a_name_of_its_own_is_searched_by_its_tags() -> None:
    class Ec2:
        def describe_route_tables(self, Filters: list[dict[str, Any]]) -> dict[str, Any]:
            assert {f["Name"]: f["Values"] for f in Filters} == {
                "tag:Name": ["sluice-dev-data"],
                "tag:Env": ["dev"],
                "vpc-id": ["vpc-1"],
            }
            return {"RouteTables": [{"RouteTableId": "rtb-1"}]}

    values = {"vpc_id": "vpc-1", "tags_all": {"Name": "sluice-dev-data", "Env": "dev"}}
    table = Made("aws_route_table.t", "aws_route_table")
    assert recovery.find(table, values, lambda _service: Ec2()) == "rtb-1"


def test_one_without_a_name_is_searched_and_taken_only_if_it_is_the_only_one() -> None:
    class Ec2:
        def describe_nat_gateways(self, Filter: list[dict[str, Any]]) -> dict[str, Any]:
            assert Filter == [{"Name": "subnet-id", "Values": ["subnet-1"]}]
            return {
                "NatGateways": [
                    {"NatGatewayId": "nat-1", "State": "deleted"},
                    {"NatGatewayId": "nat-2", "State": "available"},
                    {"NatGatewayId": "nat-3", "State": "pending"},
                ]
            }

    begun = Made("aws_nat_gateway.n", "aws_nat_gateway")
    values = {"subnet_id": "subnet-1"}
    assert recovery.find(begun, values, lambda _service: Ec2(), taken=["nat-2"]) == "nat-3"
    assert recovery.find(begun, values, lambda _service: Ec2()) == ""
    assert recovery.find(begun, {}, lambda _service: Ec2()) == ""


@pytest.mark.parametrize("kind", sorted(recovery.SEARCHED))
def test_a_search_is_one_that_the_service_knows(kind: str) -> None:
    # Given the service's own model
    service, call, arguments, listed, id_name, state = recovery.SEARCHED[kind]
    client = boto3.client(service, region_name="us-east-1")
    operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[call])
    # Then what is sent is valid, and what is read of the answer is in it
    assert not ParamValidator().validate(arguments, operation.input_shape).has_errors()
    answer = operation.output_shape.members
    members = answer[listed].member.members if listed else answer
    assert id_name in members and (not state or state in members)


def test_an_error_names_the_imports_it_speaks_of() -> None:
    error = messages.TerraformError("x")
    detail = 'While attempting to import an existing object to "aws_a.b", the provider detected that no object exists'
    error.diagnostics = (messages.Diagnostic("error", "Cannot import non-existent remote object", detail),)
    assert recovery.named(error, {"aws_a.b": "1", "aws_a.bc": "2", "aws_a.b[0]": "3"}) == {"aws_a.b"}
    quoted = 'an existing object to "module.m.aws_a.b[\\"x\\"]", the provider'
    error.diagnostics = (messages.Diagnostic("error", "Cannot import non-existent remote object", quoted),)
    assert recovery.named(error, {'module.m.aws_a.b["x"]': "1", 'aws_a.b["y"]': "2"}) == {'module.m.aws_a.b["x"]'}


def test_an_import_in_a_plan_is_told_from_a_creation() -> None:
    about = {"addr": "aws_vpc.a", "resource_type": "aws_vpc"}
    change = {"resource": about, "action": "noop", "importing": {"id": "vpc-1"}}
    summary = planned.from_stream([{"type": "planned_change", "change": change}])
    assert summary.line() == "1 to take in" and summary.steps == 0 and not summary.empty
    entry = {"address": "aws_vpc.a", "type": "aws_vpc", "change": {"actions": ["no-op"], "importing": {"id": "vpc-1"}}}
    assert planned.from_show({"format_version": "1.2", "resource_changes": [entry]}) == summary
    assert summary.as_json()["import"] == {"aws_vpc.a": "vpc-1"}


def test_the_log_of_a_run_that_lives_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    # Given a terraform that goes on although who started it is dead
    script = (
        "import sys; from pathlib import Path; from runner.deployctl import run\n"
        "run.start(['sleep', '60'], cwd=Path('.'), environ={'PATH': '/usr/bin:/bin'}, log_folder=Path(sys.argv[1]),"
        " name='apply', cancel=run.Cancel(), on_message=None)"
    )
    starter = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    psutil = pytest.importorskip("psutil")
    child = None
    while child is None:
        assert starter.poll() is None
        child = next(iter(psutil.Process(starter.pid).children()), None)
    (log,) = tmp_path.glob("apply-*.log")
    starter.kill()
    starter.wait()
    assert not run.abandoned(log)
    # When it is killed
    child.kill()
    psutil.wait_procs([child], timeout=30)
    # Then its log is one of those to learn from
    assert run.abandoned(log)
    assert not run.abandoned(tmp_path / "not there")


def test_of_several_killed_applies_the_last_one_knows_best(tmp_path: Path) -> None:
    # Given one that began a key, and a later one that found none and made it; the names of their logs say no order
    for name, at, row in (
        ("apply-z.log", 1, line("apply_start", "aws_kms_key.k")),
        ("apply-a.log", 2, line("apply_complete", "aws_kms_key.k", made_id="key-2")),
    ):
        (tmp_path / name).write_text(row)
        os.utime(tmp_path / name, ns=(at, at))
    space = terraform.Workspace(binary=Path("/bin/true"), source=tmp_path, data=tmp_path)
    # Then the id is known
    assert recovery.begun(space) == [Made("aws_kms_key.k", "aws_kms_key", "key-2")]


def test_import_blocks_stand_beside_the_code_and_are_gone_afterwards(tmp_path: Path) -> None:
    source = tmp_path / "tree" / "stacks" / "one"
    source.mkdir(parents=True)
    (source.parent.parent / "modules").mkdir()
    (source / "main.tf").write_text("# code")
    space = terraform.Workspace(binary=Path("/bin/true"), source=source, data=tmp_path / "data")
    with space._source_with({'aws_a.b["x"]': 'i"d${x}'}) as folder:
        assert (folder / "main.tf").read_text() == "# code"
        assert (folder / ".." / ".." / "modules").is_dir()
        written = (folder / "sluice-imports.tf").read_text()
        assert written == 'import {\n  to = aws_a.b["x"]\n  id = "i\\"d$${x}"\n}\n'
    assert not folder.exists() and [p.name for p in source.iterdir()] == ["main.tf"]


def test_a_rule_of_a_security_group_is_known_by_all_that_makes_it() -> None:
    rules = [
        {
            "SecurityGroupRuleId": "in-group",
            "IsEgress": False,
            "IpProtocol": "tcp",
            "FromPort": 80,
            "ToPort": 80,
            "ReferencedGroupInfo": {"GroupId": "sg-2"},
        },
        {
            "SecurityGroupRuleId": "in-all",
            "IsEgress": False,
            "IpProtocol": "tcp",
            "FromPort": 80,
            "ToPort": 80,
            "CidrIpv4": "0.0.0.0/0",
        },
        {
            "SecurityGroupRuleId": "out",
            "IsEgress": True,
            "IpProtocol": "-1",
            "FromPort": -1,
            "ToPort": -1,
            "CidrIpv4": "0.0.0.0/0",
        },
    ]

    class Ec2:
        def get_paginator(self, name: str) -> Ec2:
            assert name == "describe_security_group_rules"
            return self

        def paginate(self, Filters: list[dict[str, object]]) -> list[dict[str, object]]:
            assert Filters == [{"Name": "group-id", "Values": ["sg-1"]}]
            return [{"SecurityGroupRules": rules}]

    def found(kind: str, **values: object) -> str:
        begun = Made(f"aws_vpc_security_group_{kind}_rule.r", f"aws_vpc_security_group_{kind}_rule")
        return recovery.find(begun, {"security_group_id": "sg-1", **values}, lambda _service: Ec2())

    web = {"ip_protocol": "tcp", "from_port": 80, "to_port": 80}
    assert found("ingress", **web, referenced_security_group_id="sg-2") == "in-group"
    assert found("ingress", **web, cidr_ipv4="0.0.0.0/0") == "in-all"
    assert found("ingress", **{**web, "to_port": 81}, cidr_ipv4="0.0.0.0/0") == ""
    assert found("egress", ip_protocol="-1", cidr_ipv4="0.0.0.0/0") == "out"
    assert recovery.find(Made("r.r", "aws_vpc_security_group_egress_rule"), {}, lambda _service: Ec2()) == ""


def test_the_rules_that_a_new_group_has_by_itself_are_looked_for_too() -> None:
    def rule(address: str, group: str | None, actions: list[str], kind: str = "egress") -> dict[str, object]:
        kind = f"aws_vpc_security_group_{kind}_rule"
        return {"address": address, "type": kind, "change": {"actions": actions, "after": {"security_group_id": group}}}

    document = {
        "resource_changes": [
            rule("a.out", "sg-1", ["create"]),
            rule("a.in", "sg-1", ["create"], "ingress"),
            rule("a.there", "sg-1", ["no-op"]),
            rule("b.out", "sg-2", ["create"]),
            rule("c.out", None, ["create"]),
            {"address": "vpc", "type": "aws_vpc", "change": {"actions": ["create"], "after": None}},
        ]
    }
    assert [m.address for m in recovery.rules_of({"sg-1"}, document)] == ["a.out", "a.in"]
    assert recovery.rules_of({"sg-1"}, {}) == []
