"""What every module promises and refuses: Terraform's own tests, and the words of each refusal.

`terraform test` says that a value is refused, not what the user reads. So all bad values go into one configuration
whose single `validate` answers with every message; conditions on two variables at once need a plan, and stay there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runner.deployctl import binary

from .conftest import SOURCE, copy_of_tree

pytestmark = [pytest.mark.terraform, pytest.mark.slow]

SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:shop"
SHOP = {"database": "shop", "secret_arn": SECRET}
STACK = {"env": "test", "region": "us-east-1", "account_id": "123456789012", "state_bucket": "b"}

# (folder, the bad value, what the user reads)
REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("modules/network", {"zones": 1}, "zones is 1; it must be 2 (the least a database subnet group takes) or 3."),
    ("modules/network", {"zones": 4}, "zones is 4; it must be 2"),
    ("modules/network", {"cidr": "10.40.0.0/33"}, 'cidr is "10.40.0.0/33"; it must be an IPv4 range with a /16 prefix'),
    ("modules/network", {"cidr": "10.40.0.0/20"}, 'cidr is "10.40.0.0/20"; it must be an IPv4 range with a /16 prefix'),
    ("modules/network", {"nat_gateways": "none"}, 'nat_gateways is "none"; it must be "one" or "one-per-zone".'),
    ("modules/security-groups", {"user_cidrs": ["203.0.113.7"]}, "user_cidrs must be IPv4 ranges such as"),
    ("modules/endpoints", {"services": ["ssm", "ssm"]}, "services names one twice: ssm, ssm."),
    ("modules/endpoints", {"services": ["s3"]}, "S3 has a gateway endpoint already, which is free; leave it out."),
    ("modules/endpoints", {"services": ["SSM"]}, 'short names such as secretsmanager or ecr.api, not "SSM".'),
    ("modules/flow-logs", {"retention_days": 31}, "retention_days is 31; CloudWatch takes 1, 3, 5, 7,"),
    ("modules/boot", {"settings": {"A": "b\nC=d"}}, "settings: a value has a line break; one line each: A."),
    ("modules/node-group", {"role": "database"}, 'role is "database"; it must be scheduler, web or worker.'),
    (
        "modules/node-group",
        {"release_keys": ["RWQ"]},
        "release_keys names RWQ; a key is the second line of its .pub file",
    ),
    ("modules/node-group", {"min_size": 1.5}, "min_size is 1.5; it must be a whole number from 0 up."),
    ("modules/node-group", {"instance_types": ["a", "a"]}, "must name at least one type, and none twice: a, a."),
    ("modules/node-group", {"spot_percent": 101}, "spot_percent is 101; it must be between 0 and 100."),
    ("modules/node-group", {"drain_seconds": 144001}, "drain_seconds is 144001; it must be between 1 and 144000"),
    ("modules/database", {"instance_class": "cache.t4g.small"}, "RDS classes start with db., such as db.t4g.medium."),
    ("modules/database", {"storage_gb": 10}, "storage_gb is 10; gp3 storage starts at 20 GiB."),
    ("modules/database", {"backup_days": 0}, "backup_days is 0; RDS keeps 1 to 35"),
    ("modules/broker", {"node_type": "db.t4g.small"}, "ElastiCache types start with cache., such as cache.t4g.small."),
    ("modules/broker", {"replicas": 6}, "replicas is 6; AWS takes 0 to 5."),
    ("modules/bucket", {"name": "Sluice"}, 'name is "Sluice"; S3 takes 3 to 63 lower-case letters'),
    ("modules/bucket", {"expire_days": {"logs/": 0.5}}, "expire_days must be whole days from 1 up: logs/ = 0.5."),
    ("modules/bucket", {"infrequent_days": {"logs/": 7}}, "infrequent_days must be 30 or more: logs/ = 7."),
    ("modules/load-balancer", {"certificate_arn": "web"}, 'certificate_arn is "web"; it must be the ARN of an ACM'),
    ("modules/private-dns", {"zone": "a.internal."}, "a domain name in lower case without a dot at its end"),
    ("modules/alarms", {"heartbeat_minutes": 1}, "heartbeat_minutes is 1; it must be a whole number from 2"),
    ("modules/alarms", {"database": {"id": "d", "cpu_percent": 110}}, "cpu_percent (110) is between 0 and 100"),
    ("modules/alarms", {"broker": {"members": [], "memory_percent": 100}}, "memory_percent is 100; it must be between"),
    ("modules/monitoring-host", {"scrape": {"web": [22]}}, "a port is a number from 1 to 65535, and never 22: 22."),
    ("modules/monitoring-host", {"volume_gb": 1}, "volume_gb is 1; it must be between 10 and 16384."),
    ("modules/lifecycle-events", {"retention_days": 31}, "retention_days is 31; CloudWatch takes"),
    ("modules/replication", {"sources": {"shop": {**SHOP, "engine": "sqlite"}}}, "engine must be postgres, mysql"),
    ("modules/replication", {"sources": {"shop": {**SHOP, "tables": ["orders"]}}}, "a table is schema.table"),
    ("modules/replication", {"sources": {"shop": {**SHOP, "secret_arn": "x"}}}, 'ARN of a secret: shop has "x".'),
    ("modules/replication", {"sources": {"Shop": SHOP}}, "a letter first: Shop."),
    ("modules/replication", {"target": {"secret_arn": "", "security_group_id": "s"}}, 'target: secret_arn is "";'),
    ("modules/replication", {"target": {"secret_arn": SECRET, "security_group_id": None}}, "There is no warehouse"),
    ("modules/replication", {"instance_class": "db.t3.medium"}, "DMS classes start with dms., such as dms.t3.medium."),
    ("modules/ci-role", {"subjects": ["repo:*"]}, "subjects must name the repository in full"),
    ("modules/ci-role", {"subjects": ["repo:acme/*:ref:refs/heads/main"]}, "subjects must name the repository in full"),
    ("modules/ci-role", {"subjects": []}, "subjects must name the repository in full"),
    ("modules/ci-role", {"issuer_url": "http://ci"}, 'issuer_url is "http://ci"; it must start with https://.'),
    ("stacks/network", {"env": "production-eu-1"}, 'env is "production-eu-1"; it must be 2 to 12 lower-case letters'),
    ("stacks/network", {"account_id": "1234"}, 'account_id is "1234"; it must be the 12 digits of an AWS account.'),
    ("stacks/network", {"permissions_boundary_arn": "x"}, 'permissions_boundary_arn is "x"; it must be the ARN of an'),
    ("stacks/data", {"log_days": -1}, "log_days is -1; it must be whole days, or 0 to keep logs."),
    ("stacks/data", {"file_days": 0.5}, "file_days is 0.5; it must be whole days, or 0 to keep files."),
    ("stacks/data", {"access_log_days": -1}, "access_log_days is -1; it must be whole days, or 0 for no record."),
    ("stacks/control", {"schedulers": {"nodes": 1}}, "at least two nodes (it has 1), or one failure stops every"),
    ("stacks/control", {"web": {"nodes": -1}}, "web: no fewer than 0 nodes (it has -1)"),
    ("stacks/control", {"boot_seconds": 10}, "boot_seconds is 10; AWS takes 30 to 7200."),
    ("stacks/workers", {"pools": {"a": {"workers": 7, "max_workers": 3}}}, "between 0 and max_workers: a has 7 of 3."),
    ("stacks/workers", {"pools": {"a": {"workers": 1.5}}}, "workers must be a whole number between 0 and max_workers"),
    ("stacks/workers", {"pools": {"a": {"workers": 0}}}, "a has 0 workers; set scale_to_zero = true if that is meant."),
    (
        "stacks/workers",
        {"pools": {"a": {"queues": ["x", "y"]}, "b": {"queues": ["y"]}}},
        "a queue is in one pool only, and once: a has x, y; b has y.",
    ),
    ("stacks/workers", {"pools": {"a": {"queues": ["x", "x"]}}}, "a queue is in one pool only, and once: a has x, x."),
    ("stacks/workers", {"pools": {"a": {"queues": ["x,y"]}}}, "a queue's name is letters, digits, dots, dashes and"),
    ("stacks/workers", {"pools": {"a": {"queues": []}}}, "a pool needs at least one slot, one queue and one instance"),
    ("stacks/workers", {"pools": {"a": {"slots": 0}}}, "a pool needs at least one slot, one queue and one instance"),
    ("stacks/workers", {"pools": {"a": {"spot_percent": 120}}}, "spot_percent must be between 0 and 100: a has 120."),
    ("stacks/workers", {"pools": {"a": {"volume_gb": 4}}}, "volume_gb must be between 8 and 16384: a has 4."),
    ("stacks/workers", {"pools": {"a": {"drain_seconds": 200000}}}, "drain_seconds must be between 1 and 144000"),
    ("stacks/workers", {"pools": {"Default": {}}}, 'a letter first; not "Default".'),
    ("stacks/workers", {"workers": {"default": -1}}, "workers must be whole numbers from 0 up: default = -1."),
    ("stacks/workers", {"surge": 0}, "surge is 0; a rollout needs room for at least 1."),
    ("stacks/control", {"secret_key_arn": "x"}, 'secret_key_arn is "x"; it must be the ARN of a secret'),
    ("stacks/workers", {"secret_key_arn": "x"}, 'secret_key_arn is "x"; it must be the ARN of a secret'),
    ("stacks/workers", {"secret_arns": ["x"]}, "secret_arns: each is the ARN of one secret: x."),
    ("stacks/monitoring", {"alert_emails": ["ops"]}, 'alert_emails: not an address: "ops".'),
]

VARIABLE = re.compile(r'^variable "(\w+)" \{\n(.*?)^\}', re.M | re.S)

# What a folder cannot do without, and a good value of it: anything of the right type.
GOOD: dict[str, Any] = {
    **STACK,
    "string": "x",
    "number": 30,
    "bool": False,
    "list(string)": ["x"],
    "map(string)": {},
    "pools": {"default": {}},
    "instance_class": "db.t4g.medium",
    "storage_gb": 50,
    "max_storage_gb": 100,
    "cidr": "10.40.0.0/16",
    "zones": 2,
    "nat_gateways": "one",
    "node_type": "cache.t4g.small",
    "replicas": 1,
    "role": "web",
    "min_size": 1,
    "max_size": 3,
    "zone": "a.internal",
    "certificate_arn": "arn:aws:acm:us-east-1:123456789012:certificate/c",
    "issuer_url": "https://ci",
    "subjects": ["repo:a/b:ref:refs/heads/main"],
    "name": "sluice-test",
    "buckets": {"artifacts": "a", "storage": "s", "state": "t"},
    "engines": {"database_url": "", "database_secret_arn": "", "broker_url": "", "broker_secret_arn": ""},
    "database": {"id": "d"},
    "broker": {"members": []},
    "sources": {"shop": SHOP},
    "target": {"secret_arn": SECRET, "security_group_id": "s"},
}


def required(folder: str) -> dict[str, str]:
    """The variables of a module or stack that have no default, with their types."""
    blocks = VARIABLE.findall((SOURCE / folder / "variables.tf").read_text())
    return {
        name: re.sub(r"\s+", " ", match[1])
        for name, body in blocks
        if not re.search(r"^  default\s", body, re.M) and (match := re.search(r"^  type\s*=\s*(.+)$", body, re.M))
    }


def call(folder: str, values: dict[str, Any]) -> dict[str, Any]:
    good = {name: GOOD.get(name, GOOD.get(kind)) for name, kind in required(folder).items()}
    if folder.endswith("replication"):
        good |= {"instance_class": "dms.t3.medium"} if folder.startswith("modules") else {}
    return {"source": f"../{folder}", **good, **values}


def terraform(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environ = binary.child_environ(os.environ) | {"TF_DATA_DIR": str(folder / "data")}
    argv = (str(binary.find()), f"-chdir={folder}", *argv)
    return subprocess.run(argv, env=environ, capture_output=True, text=True)


def initialise(folder: Path, *options: str) -> None:
    with binary.plugin_lock(binary.child_environ(os.environ)):
        ready = terraform(folder, "init", "-input=false", "-no-color", *options)
    assert ready.returncode == 0, ready.stdout + ready.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_tree(tmp_path_factory.mktemp("modules") / "terraform")


@pytest.mark.timeout(900)
def test_terraforms_own_tests_pass(tree: Path) -> None:
    folder = tree / "tests"
    initialise(folder, "-test-directory=.")
    done = terraform(folder, "test", "-no-color", "-test-directory=.")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Success! \d\d+ passed, 0 failed", done.stdout), done.stdout


@pytest.mark.timeout(600)
def test_every_refusal_says_what_is_wrong_and_what_would_be_right(tree: Path) -> None:
    folder = tree / "refusals"
    folder.mkdir()
    modules = {f"m{i}": call(name, values) for i, (name, values, _) in enumerate(REFUSALS)}
    (folder / "main.tf.json").write_text(json.dumps({"module": modules}))
    initialise(folder)
    answer = json.loads(terraform(folder, "validate", "-json").stdout)
    said: dict[str, list[str]] = {}
    for found in answer["diagnostics"]:
        if found["severity"] == "error":
            where = (found.get("snippet") or {}).get("context") or "elsewhere"
            said.setdefault(where, []).append(" ".join(found["detail"].split()))
    assert "elsewhere" not in said, said["elsewhere"]
    for i, (name, values, words) in enumerate(REFUSALS):
        heard = said.get(f"module.m{i}", said.get(f'module "m{i}"', []))
        assert any(words in one for one in heard), f"{name} {values}: {heard}"
        assert len(heard) == 1, f"{name} {values} is wrong in one way only: {heard}"


def test_every_module_is_tested() -> None:
    tests = "".join(path.read_text() for path in (SOURCE / "tests").glob("*.tftest.hcl"))
    for folder in sorted(SOURCE.glob("modules/*")):
        assert f'"../modules/{folder.name}"' in tests, f"{folder.name} has no run in terraform/tests"


def test_every_variable_with_a_condition_is_refused_once() -> None:
    refused = {(name, key) for name, values, _ in REFUSALS for key in values}
    for path in (SOURCE / "tests").glob("*.tftest.hcl"):
        for run in path.read_text().split("\nrun ")[1:]:
            source = re.search(r'source = "../(.*)"', run)
            assert source, run
            refused |= {
                (source[1], name) for name in re.findall(r"var\.(\w+)", "".join(re.findall(r"s = \[(.*)\]", run)))
            }
    everywhere = {("stacks/network", name) for name in ("env", "account_id", "permissions_boundary_arn")}
    assert everywhere <= refused
    for path in [*SOURCE.glob("modules/*/variables.tf"), *SOURCE.glob("stacks/*/variables.tf")]:
        folder = path.parent.relative_to(SOURCE).as_posix()
        for name, body in VARIABLE.findall(path.read_text()):
            # What every stack has, every stack says in the same words: see below.
            shared = ("stacks/network", name) in everywhere or name == "boot_seconds"
            assert "validation {" not in body or shared or (folder, name) in refused, f"{folder}: no bad {name}"


def test_every_stack_says_the_same_of_what_all_have() -> None:
    wanted: dict[str, str] = {}
    for path in sorted(SOURCE.glob("stacks/*/variables.tf")):
        for name, body in VARIABLE.findall(path.read_text()):
            if name in ("env", "region", "account_id", "state_bucket", "permissions_boundary_arn"):
                assert body == wanted.setdefault(name, body), f"{path.parent.name}: {name}"
    assert len(wanted) == 5
