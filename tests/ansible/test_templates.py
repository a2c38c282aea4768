"""Every template, with the roles' defaults and each distribution's table, is what its program reads."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).parents[2]
ANSIBLE = ROOT / "ansible"
TEMPLATES = sorted((ANSIBLE / "roles").glob("*/templates/*.j2"))
DISTRIBUTIONS = sorted((ANSIBLE / "vars").glob("*.yml"))
# What a role's tasks say beside its defaults.
GIVEN = {
    "ansible_managed": "Ansible managed",
    "node_env": {"AWS_REGION": "eu-west-1", "SLUICE_ENV": "prod", "SLUICE_VOLUME": "/dev/sdf"},
    "runner_drop_in": {"Service": {"MemoryMax": "4G", "Nice": 5}},
}


def trust(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: trust(v) for k, v in value.items()}
    if isinstance(value, list):
        return [trust(v) for v in value]
    return trust_as_template(value) if isinstance(value, str) else value


def render(template: Path, distribution: Path = DISTRIBUTIONS[0], **more: Any) -> str:
    variables = dict(GIVEN)
    for path in (template.parents[1] / "defaults/main.yml", distribution):
        variables |= yaml.safe_load(path.read_text())
    templar = Templar(loader=DataLoader(), variables=trust(variables | more))
    return str(templar.template(trust_as_template(template.read_text())))


def named(name: str) -> Path:
    (found,) = [t for t in TEMPLATES if t.name == name]
    return found


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda p: p.stem)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda p: f"{p.parents[1].name}/{p.name}")
def test_it_renders(template: Path, distribution: Path) -> None:
    text = render(template, distribution)
    assert "Ansible managed" in text.splitlines()[0] and "{{" not in text.replace("{{ $", "")
    if template.name.endswith((".yml.j2", ".repo.j2", ".ini.j2")):
        assert (
            yaml.safe_load(text) if ".yml" in template.name else configparser.ConfigParser().read_string(text) is None
        )


def test_prometheus_finds_instances_by_their_tags_or_from_files() -> None:
    config = yaml.safe_load(render(named("prometheus.yml.j2")))
    assert config["global"]["external_labels"] == {"env": "prod"}
    jobs = {j["job_name"]: j for j in config["scrape_configs"]}
    assert {"node-worker", "node-scheduler", "node-web", "node-monitoring", "flower-scheduler", "sluice-web"} <= set(
        jobs
    )
    (found,) = jobs["flower-scheduler"]["ec2_sd_configs"]
    assert found["region"] == "eu-west-1" and found["port"] == 5555
    filters = {f["name"]: f["values"] for f in found["filters"]}
    assert filters == {"tag:Env": ["prod"], "tag:Role": ["scheduler"], "instance-state-name": ["running"]}
    local = yaml.safe_load(render(named("prometheus.yml.j2"), prometheus_discovery="file"))
    assert "ec2_sd_configs" not in str(local)
    (files,) = {j["job_name"]: j for j in local["scrape_configs"]}["sluice-web"]["file_sd_configs"]
    assert files["files"] == ["/etc/prometheus/targets/web.json"]


def test_alerts_go_to_the_topic_where_there_is_one() -> None:
    nobody = yaml.safe_load(render(named("alertmanager.yml.j2"), node_env={}))
    assert nobody["route"]["receiver"] == "nobody" and nobody["receivers"] == [{"name": "nobody"}]
    topic = "arn:aws:sns:eu-west-1:123456789012:sluice-prod-alerts"
    config = yaml.safe_load(
        render(named("alertmanager.yml.j2"), node_env={**GIVEN["node_env"], "SLUICE_ALERTS_TOPIC": topic})
    )
    (receiver,) = config["receivers"]
    assert config["route"]["receiver"] == receiver["name"]
    assert receiver["sns_configs"] == [{"topic_arn": topic, "send_resolved": True, "sigv4": {"region": "eu-west-1"}}]


def test_every_alert_says_how_bad_it_is_and_what_is_wrong() -> None:
    groups = yaml.safe_load(render(named("rules.yml.j2")))["groups"]
    rules = [r for g in groups for r in g["rules"]]
    assert len(rules) >= 8 and all(r["labels"]["severity"] in ("page", "warn") and r["for"] for r in rules)
    assert all(r["annotations"]["summary"].endswith(".") for r in rules)
    wait = next(r for r in rules if r["alert"] == "TasksWait")
    assert "> 900\n" in wait["expr"]


def test_the_alerts_tell_trouble_from_a_fleet_that_works(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; tests/e2e/roles runs the same test where it is")
    (tmp_path / "rules.yml").write_text(render(named("rules.yml.j2")))
    shutil.copy(Path(__file__).with_name("rules_test.yml"), tmp_path)
    done = subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
