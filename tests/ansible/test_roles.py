"""The roles: documented as they are, of ansible-core's own modules, and never the end of a task."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
ROLES = sorted(p.name for p in (ANSIBLE / "roles").iterdir() if p.is_dir())
TABLES = {p.stem: yaml.safe_load(p.read_text())["platform"] for p in sorted((ANSIBLE / "vars").glob("*.yml"))}
EACH_ROLE = pytest.mark.parametrize("role", ROLES)
PYTHON = {"str": str, "path": str, "int": int, "bool": bool, "list": list, "dict": dict}
# What a task may say beside its module.
KEYWORDS = {
    "name", "when", "vars", "loop", "loop_control", "register", "notify", "changed_when", "failed_when", "check_mode",
    "diff", "no_log", "until", "retries", "delay", "environment", "block", "module_defaults",
}  # fmt: skip


def load(*path: str) -> Any:
    return yaml.safe_load(ANSIBLE.joinpath(*path).read_text())


def options(role: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = load("roles", role, "meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    return found


def tasks(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every task and handler below a folder, those in blocks too."""
    for path in sorted(folder.rglob("*.yml")):
        if path.parent.name in ("tasks", "handlers"):
            waiting = list(yaml.safe_load(path.read_text()) or [])
            while waiting:
                task = waiting.pop(0)
                waiting += task.get("block", [])
                yield path, task


def module(task: dict[str, Any]) -> str:
    (found,) = set(task) - KEYWORDS or {""}
    return found


def test_the_roles_are_those_of_the_house() -> None:
    assert set(ROLES) == {
        "base", "runner", "scheduler", "worker", "web", "agent", "flower", "node_exporter", "pushgateway", "prometheus",
        "alertmanager", "grafana", "container_engine",
    }  # fmt: skip


@EACH_ROLE
def test_a_role_has_its_rooms(role: str) -> None:
    folder = ANSIBLE / "roles" / role
    for name in ("preflight", "install", "configure"):
        assert yaml.safe_load((folder / f"tasks/{name}.yml").read_text()), name
    main = [next(iter(t.values())) for t in load("roles", role, "tasks/main.yml")]
    assert main == ["Preflight", "Install", "Configure"]


@EACH_ROLE
def test_every_default_is_documented_and_nothing_else_is(role: str) -> None:
    defaults, spec = load("roles", role, "defaults/main.yml"), options(role)
    assert set(defaults) == set(spec)
    for name, value in defaults.items():
        assert name.startswith(f"{role}_"), name
        assert spec[name]["description"].endswith("."), name
        if not (isinstance(value, str) and "{{" in value):
            assert type(value) is PYTHON[spec[name]["type"]], name
            assert spec[name].get("default", value) == value, name
    # and the defaults say themselves what they mean: a comment before each, or before its group
    text = (ANSIBLE / "roles" / role / "defaults/main.yml").read_text()
    for block in re.split(r"\n\n", text.removeprefix("---\n")):
        assert block.lstrip().startswith("#"), block


def test_only_what_a_node_has_is_used() -> None:
    for path, task in tasks(ANSIBLE / "roles"):
        name = module(task)
        assert not name or name.startswith("ansible.builtin."), f"{path}: {name}"
        assert "block" in task or name, f"{path}: {task['name']} does nothing"


def test_no_task_of_a_pipeline_is_ended_by_a_role() -> None:
    # Given every task and handler that stops or restarts something
    stopping = [
        (path, yaml.dump(task))
        for path, task in tasks(ANSIBLE / "roles")
        if re.search(r"restarted|stopped|kill", str(task))
    ]
    assert len(stopping) > 5
    # Then none of them is about a unit that runs tasks, schedules or serves
    for path, text in stopping:
        assert not re.search(r"runner-(worker|scheduler|web)|runner\.(target|slice)", text), path
        assert path.parent.parent.name not in ("worker", "scheduler", "web", "runner"), path


@EACH_ROLE
def test_handlers_reload_before_they_restart(role: str) -> None:
    path = ANSIBLE / "roles" / role / "handlers/main.yml"
    states = [str(t) for t in yaml.safe_load(path.read_text())] if path.exists() else []
    order = ["restarted" in s for s in states if "restarted" in s or "'reloaded'" in s]
    assert order == sorted(order) or role == "base"  # base has one service a handler


def test_every_notified_handler_is_there() -> None:
    handlers = {t["name"] for path, t in tasks(ANSIBLE / "roles") if path.parent.name == "handlers"}
    for path, task in tasks(ANSIBLE / "roles"):
        wanted = [task.get("notify"), task.get("vars", {}).get("runner_drop_in_notify")]
        for name in wanted:
            assert name is None or "{{" in name or name in handlers, f"{path}: {name}"


def shape(value: Any) -> Any:
    return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value)


def test_the_tables_of_the_distributions_say_the_same_things() -> None:
    assert set(TABLES) == {"Debian-12", "Debian-13", "Ubuntu-24", "Amazon-2023"}
    for name, table in TABLES.items():
        assert shape(table) == shape(TABLES["Debian-12"]), name


@pytest.mark.parametrize(
    ("distribution", "packages", "services", "options_file"),
    [
        ("Debian-12", "prometheus-node-exporter", "chrony", "/etc/default/prometheus-node-exporter"),
        ("Debian-13", "prometheus-node-exporter", "chrony", "/etc/default/prometheus-node-exporter"),
        ("Ubuntu-24", "prometheus-node-exporter", "chrony", "/etc/default/prometheus-node-exporter"),
        ("Amazon-2023", "node_exporter", "chronyd", "/etc/default/node_exporter"),
    ],
)
def test_packages_and_paths(distribution: str, packages: str, services: str, options_file: str) -> None:
    table = TABLES[distribution]
    assert table["node_exporter"]["package"] == packages
    assert table["node_exporter"]["options_file"] == options_file
    assert table["time"]["service"] == services
    family = "yum" if distribution.startswith("Amazon") else "apt"
    assert f"/etc/{family}" in table["grafana"]["repository_file"]
    assert (table["repository"]["file"] == "") == (family == "apt")
    assert (
        "dnf" in table["updates"]["package"]
        if family == "yum"
        else table["updates"]["package"] == "unattended-upgrades"
    )
    for part in table.values():
        for key, value in part.items() if isinstance(part, dict) else ():
            assert not key.endswith(("file", "socket")) or value == "" or Path(value).is_absolute(), (key, value)
    assert (ANSIBLE / "roles/grafana/templates" / table["grafana"]["repository_template"]).is_file()
    assert (ANSIBLE / "roles/base/templates" / table["updates"]["template"]).is_file()


@pytest.mark.parametrize("env", sorted(p.name for p in (ROOT / "terraform/envs").iterdir()))
def test_each_environment_has_its_inventory(env: str) -> None:
    inventory = load("inventory", f"{env}.aws_ec2.yml")
    common = (ROOT / "terraform/envs" / env / "common.tfvars").read_text()
    assert f'env          = "{env}"' in common and inventory["filters"]["tag:Env"] == env
    assert [f'"{r}"' in common for r in inventory["regions"]] == [True]


def test_roles_and_ports_are_those_of_terraform() -> None:
    # Given the roles that Terraform gives machines, and the ports that it opens to the monitoring host
    tree = ROOT / "terraform"
    given = set(
        re.findall(r'^\s+(?:role|SLUICE_ROLE)\s+= "(\w+)"', "".join(p.read_text() for p in tree.rglob("*.tf")), re.M)
    )
    opened = (
        (tree / "modules/monitoring-host/variables.tf")
        .read_text()
        .partition('variable "scrape"')[2]
        .partition("validation")[0]
    )
    ports = {r: {int(p) for p in re.findall(r"\d+", found)} for r, found in re.findall(r"(\w+)\s+= \[(.*)\]", opened)}
    # Then the site has a play for each, and Prometheus asks exactly there
    plays = {p["hosts"].removeprefix("sluice_") for p in load("site.yml") if p["hosts"].startswith("sluice_")}
    assert given == plays == {"worker", "scheduler", "web", "monitoring"}
    asked = load("roles/prometheus/defaults/main.yml")["prometheus_ports"]
    assert {r: set(p) for r, p in asked.items() if r != "monitoring"} == ports


def test_what_is_measured_is_kept_on_the_volume() -> None:
    volume = load("roles/base/defaults/main.yml")["base_volume_path"]
    for role, name in {"prometheus": "data", "alertmanager": "data", "grafana": "data", "pushgateway": "file"}.items():
        assert load("roles", role, "defaults/main.yml")[f"{role}_{name}"].startswith(f"{volume}/{role}")


@pytest.mark.skipif(os.geteuid() != 0, reason="the file belongs to root")
def test_the_key_of_secrets_goes_from_aws_into_its_file_and_nowhere_else(aws_endpoint: str, tmp_path: Path) -> None:
    # Given a secret
    keys = {"endpoint_url": aws_endpoint, "region_name": "us-east-1"}
    client = boto3.client("secretsmanager", **keys, aws_access_key_id="test", aws_secret_access_key="test")
    arn = client.create_secret(Name="sluice-key", SecretString="k3y-0ne,k3y-tw0\n")["ARN"]
    script, target = ANSIBLE / "roles/runner/files/secrets.py", tmp_path / "secrets.env"

    def fetch(mode: str, which: str = arn) -> tuple[int, str]:
        environ = {
            "PATH": os.environ["PATH"], "AWS_ENDPOINT_URL": aws_endpoint, "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }  # fmt: skip
        argv = [sys.executable, "-c", script.read_text(), which, str(target), "root", mode]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        assert "k3y" not in done.stdout + done.stderr
        return done.returncode, done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    # When it is only looked at, nothing is written; then it is, once
    assert fetch("compare") == (0, "changed") and not target.exists()
    assert fetch("write") == (0, "changed")
    assert target.read_text() == "SLUICE_SECRET_KEY=k3y-0ne,k3y-tw0\n" and target.stat().st_mode & 0o777 == 0o640
    assert fetch("write") == (0, "same")
    # and whoever opened it to others is undone
    target.chmod(0o644)
    assert fetch("compare") == (0, "changed")
    assert fetch("write")[1] == "changed" and target.stat().st_mode & 0o777 == 0o640
    # One that is not there is named
    code, said = fetch("write", arn + "x")
    assert code == 1 and said.startswith(f"the secret {arn}x cannot be read: ")
