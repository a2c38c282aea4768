"""The roles on real systemd: one host of each role, configured the operator's way by `deployctl configure`'s own code.

What runs from the release is a stand-in that says it is ready; the real services boot in tests/e2e/nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.deployctl.configure import play
from runner.deployctl.configure_view import Display, Host, Tally
from runner.localcloud import containers, image
from runner.localcloud.containers import Container, Engine

pytestmark = [pytest.mark.podman, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[3]
ROLES = ("worker", "scheduler", "web", "monitoring")
PATIENCE_SECONDS = 120.0
# The image of nodes has no Prometheus: only this test's monitoring host needs one.
PACKAGES = "prometheus prometheus-alertmanager"
STAND_IN = """#!/usr/bin/python3
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
def tell(what):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(what.encode(), os.environ["NOTIFY_SOCKET"])
tell("READY=1")
while True:
    tell("WATCHDOG=1")
    signal.sigtimedwait([signal.SIGUSR1], 5)
"""
VARIABLES: dict[str, Any] = {
    "grafana_wanted": False,
    "prometheus_discovery": "file",
    "prometheus_scrape_interval": "1s",
}


class Fleet:
    """A host of each role, none of them configured."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.inventory = folder / "hosts.aws_ec2.yml"

    def name(self, role: str) -> str:
        return f"sluice-roles-{os.getpid()}-{role}"

    def sh(self, role: str, script: str, check: bool = True) -> str:
        done = containers.execute(self.engine, self.name(role), ["/bin/sh", "-c", script])
        if check and done.returncode != 0:
            journal = containers.execute(self.engine, self.name(role), ["journalctl", "--no-pager", "--lines", "60"])
            pytest.fail(f"{role}: {script}: {done.stdout}{done.stderr}\n{journal.stdout}")
        return done.stdout.strip()

    def eventually(self, role: str, script: str) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            done = containers.execute(self.engine, self.name(role), ["/bin/sh", "-c", script])
            if done.returncode == 0:
                return done.stdout.strip()
            if time.monotonic() > deadline:
                return self.sh(role, script)  # says why
            time.sleep(1)

    def configure(
        self, *, check: bool = False, limit: str = "", more: Mapping[str, Any] | None = None
    ) -> dict[str, Host]:
        """Run the site over the hosts, as an operator does. Hosts by role."""
        tally = Tally()
        with Display(tally, show_diffs=True) as display:
            status, said = play(
                self.inventory,
                {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(self.folder), "LC_ALL": "C.UTF-8"},
                display,
                check=check,
                limit=limit,
                variables={**VARIABLES, **(more or {})},
            )
        assert status == "successful", said[-8000:]
        return {h.name: h for h in tally.hosts()}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    for program in ("podman", "debootstrap"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed: scripts/e2e-setup")
    engine = containers.find()
    plain = image.ensure(engine, print)
    folder = tmp_path_factory.mktemp("roles")
    fleet = Fleet(engine, folder)
    # The site and the inventory of this test side by side, as in a checkout.
    shutil.copytree(ROOT / "ansible", folder / "ansible", ignore=shutil.ignore_patterns(".ansible"))
    fleet.inventory = folder / "ansible/inventory/hosts.yml"
    shutil.rmtree(folder / "ansible/inventory/group_vars")
    shutil.copytree(Path(__file__).parent / "connection_plugins", folder / "ansible/connection_plugins")
    remove_left_over(engine)
    try:
        hosts = {}
        for role in ROLES:
            start(fleet, role, monitoring_image(engine, plain) if role == "monitoring" else plain)
            pid = engine.run("inspect", "--format", "{{.State.Pid}}", fleet.name(role)).stdout.strip()
            hosts[role] = {"ansible_connection": "machine", "ansible_machine_pid": int(pid)}
        fleet.inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        yield fleet
    finally:
        engine.remove(*map(fleet.name, ROLES))


def remove_left_over(engine: Engine) -> None:
    """Containers of a run that was killed; those of one that goes on beside this one stay."""
    named = engine.run("ps", "--all", "--filter", "name=^sluice-roles-", "--format", "{{.Names}}").stdout.split()
    engine.remove(*(name for name in named if not Path("/proc", name.split("-")[2]).exists()))


def monitoring_image(engine: Engine, plain: str) -> str:
    """The image of nodes, with the packages that only a monitoring host has lying ready for apt."""
    name = f"localhost/sluice-roles-monitoring:{plain.rpartition(':')[2]}"
    if engine.run("image", "inspect", name, check=False).returncode != 0:
        script = f"apt-get update -q && apt-get install -q -y --no-install-recommends --download-only {PACKAGES}"
        resolver = "/etc/resolv.conf:/etc/resolv.conf:ro"
        options = ["--network", "host", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
        builder = f"sluice-roles-{os.getpid()}-image"
        engine.run(
            "run", "--name", builder, *options, "--volume", resolver, plain, "/bin/sh", "-c", script,
            seconds=600,
        )  # fmt: skip
        engine.run("commit", builder, name, seconds=600)
        engine.remove(builder)
    return name


def start(fleet: Fleet, role: str, image: str) -> None:
    """A host as it is before its first configuration: user data's file, and a release."""
    release = fleet.folder / role / "release"
    (release / "venv/bin").mkdir(parents=True)
    (release / "venv/bin/runner").write_text(STAND_IN)
    (release / "venv/bin/runner").chmod(0o755)
    (release / "venv/.complete").touch()
    shutil.copytree(ROOT / "systemd", release / "systemd")
    console = fleet.folder / role / "console"
    mounts = {release: "/opt/sluice/releases/abc123"}
    argv = containers.run_argv(fleet.engine, Container(fleet.name(role), role, image, fleet.folder, console, mounts))
    fleet.engine.run(*argv)
    fleet.eventually(role, "systemctl show --property=SystemState | grep -qE 'running|degraded'")
    fleet.sh(
        role,
        f"""mkdir -p /etc/sluice /opt/sluice && ln -s /opt/sluice/releases/abc123 /opt/sluice/current &&
        printf '%s\\n' SLUICE_ENV=local SLUICE_ROLE={role} SLUICE_RELEASE=abc123 SLUICE_POOL= > /etc/sluice/node.env
        # the index is as fresh as the image: there is no way out to ask for a newer one
        touch /var/lib/apt/lists; mkdir -p /var/lib/apt/periodic; touch /var/lib/apt/periodic/update-success-stamp""",
    )


def test_a_rehearsal_says_what_would_change_and_changes_nothing(fleet: Fleet) -> None:
    hosts = fleet.configure(check=True)
    assert {h.result for h in hosts.values()} == {"changed"} and set(hosts) == set(ROLES)
    for role in ROLES:
        assert fleet.sh(role, "id sluice 2>&1 || true").endswith("no such user"), role
        assert fleet.sh(role, "ls /etc/systemd/system/runner* 2>/dev/null || true") == ""


def test_the_second_run_changes_nothing(fleet: Fleet) -> None:
    first = fleet.configure()
    assert {h.result for h in first.values()} == {"changed"}
    second = fleet.configure()
    assert {name: h.what for name, h in second.items()} == dict.fromkeys(ROLES, "")
    # and what it says without doing it is as true
    assert {h.result for h in fleet.configure(check=True).values()} == {"unchanged"}


@pytest.mark.parametrize("role", ROLES)
def test_what_runs_on_every_host(fleet: Fleet, role: str) -> None:
    assert fleet.sh(role, "systemctl is-active prometheus-node-exporter") == "active"
    assert (
        fleet.sh(role, "systemctl is-enabled prometheus-node-exporter apt-daily-upgrade.timer").split()
        == ["enabled"] * 2
    )
    assert "node_memory_MemTotal_bytes" in fleet.eventually(
        role, "curl -sf http://127.0.0.1:9100/metrics | grep MemTotal"
    )
    assert fleet.sh(role, "stat -c '%U %G %a' /etc/sluice") == "root sluice 750"
    assert fleet.sh(role, "getent passwd sluice").endswith(":/var/lib/sluice:/usr/sbin/nologin")


@pytest.mark.parametrize("role", ["worker", "scheduler", "web"])
def test_only_the_agent_is_started_and_the_rest_is_ready_for_it(fleet: Fleet, role: str) -> None:
    ours = fleet.sh(
        role, "systemctl list-units --plain --no-legend 'runner-*.service' | awk '{print $1, $3}'"
    ).splitlines()
    expected = {"runner-agent.service active"} | ({"runner-flower.service active"} if role == "scheduler" else set())
    assert set(ours) == expected
    assert fleet.sh(role, "systemctl is-enabled runner-agent") == "enabled"
    unit = {"worker": "runner-worker@abc123"}.get(role, f"runner-{role}")
    fleet.sh(role, f"systemctl cat {unit} runner-tasks.slice runner-control.slice runner.target > /dev/null")
    assert fleet.sh(role, "stat -c '%U %G %a' /etc/sluice/node.env") == "root sluice 640"


def test_a_worker_that_runs_is_never_restarted(fleet: Fleet) -> None:
    # Given a worker that runs, as its agent started it
    fleet.sh("worker", "systemctl start runner-worker@abc123")

    def pids() -> list[str]:
        return fleet.sh("worker", "systemctl show --value --property=MainPID runner-worker@abc123 runner-agent").split()

    worker, agent = pids()
    # When everything about it changes: its settings, its unit, its limits, and its agent's unit
    units = {
        "worker_slots": "7",
        "worker_unit_settings": {"Nice": "5"},
        "worker_slice_settings": {"MemoryMax": "70%"},
        "agent_unit_settings": {"Nice": "-1"},
    }
    (fleet.inventory.parent / "host_vars").mkdir()
    (fleet.inventory.parent / "host_vars/worker.json").write_text(json.dumps(units))
    found = fleet.configure(limit="worker")
    # Then it is all written, the agent is new and the worker is the old one
    assert found["worker"].result == "changed"
    assert fleet.sh("worker", "grep SLOTS /etc/sluice/node.env") == "SLUICE_SLOTS=7"
    assert "Nice=5" in fleet.sh("worker", "systemctl cat runner-worker@abc123")
    assert fleet.sh("worker", "systemctl show --value --property=NeedDaemonReload runner-worker@abc123") == "no"
    assert pids()[0] == worker and pids()[1] != agent
    assert fleet.configure(limit="worker")["worker"].result == "unchanged"
    # and what was once set and is no longer is gone again
    (fleet.inventory.parent / "host_vars/worker.json").unlink()
    fleet.configure(limit="worker")
    assert "Nice=5" not in fleet.sh("worker", "systemctl cat runner-worker@abc123")
    assert pids()[0] == worker


def test_what_somebody_changed_by_hand_is_seen_and_put_right(fleet: Fleet) -> None:
    fleet.sh("web", "chmod 0644 /etc/sluice/node.env; echo '# mine' >> /etc/systemd/journald.conf.d/sluice.conf")
    assert (
        fleet.configure(check=True, limit="web")["web"].what
        == "Limits of the journal, Restart the journal, Who may read the settings"
    )
    assert fleet.sh("web", "stat -c %a /etc/sluice/node.env") == "644"
    fleet.configure(limit="web")
    assert fleet.sh("web", "stat -c %a /etc/sluice/node.env") == "640"
    assert "mine" not in fleet.sh("web", "cat /etc/systemd/journald.conf.d/sluice.conf")


def test_the_monitoring_host_watches(fleet: Fleet) -> None:
    services = ("prometheus", "prometheus-alertmanager", "prometheus-pushgateway")
    for service in services:
        assert (
            fleet.sh("monitoring", f"systemctl is-active {service}; systemctl is-enabled {service}")
            == "active\nenabled"
        )
    # Given a target, and a batch job that pushes
    fleet.sh("monitoring", """echo '[{"targets": ["127.0.0.1"]}]' > /etc/prometheus/targets/worker.json""")
    fleet.sh("monitoring", "echo 'etl_rows 42' | curl -sf --data-binary @- http://127.0.0.1:9091/metrics/job/etl")
    # Then both are read, the rules are loaded, and the alerts have where to go

    def asks(path: str, want: str) -> None:
        fleet.eventually("monitoring", f"curl -sfg 'http://127.0.0.1:{path}' | tr -d ' ' | grep -q '{want}'")

    asks("9090/api/v1/query?query=up{job=%22node-worker%22}", '"instance":"127.0.0.1".*"role":"worker".*"1"')
    asks("9090/api/v1/query?query=etl_rows", '"42"')
    asks("9090/api/v1/rules", '"QueueWithoutWorker"')
    asks("9090/api/v1/alertmanagers", "127.0.0.1:9093")
    asks("9093/api/v2/status", '"receiver:nobody\\|receiver:nobody')
    # What it keeps is on the volume's folder
    assert fleet.sh("monitoring", "ls -d /srv/monitoring/prometheus/wal") == "/srv/monitoring/prometheus/wal"


def test_what_the_alerts_say(fleet: Fleet) -> None:
    rules = fleet.folder / "monitoring/release/rules_test.yml"
    rules.write_text((ROOT / "tests/ansible/rules_test.yml").read_text())
    fleet.sh(
        "monitoring",
        "mkdir -p /tmp/rules && cd /tmp/rules && cp /opt/sluice/releases/abc123/rules_test.yml . &&"
        " cp /etc/prometheus/rules/sluice.yml rules.yml && promtool test rules rules_test.yml",
    )


def test_settings_of_prometheus_are_taken_without_a_restart(fleet: Fleet) -> None:
    def started() -> str:
        return fleet.sh("monitoring", "systemctl show --value --property=MainPID prometheus")

    before = started()
    found = fleet.configure(limit="monitoring", more={"prometheus_scrape_interval": "2s"})
    assert found["monitoring"].what == "Whom it asks, Reload Prometheus"
    assert started() == before
    fleet.eventually(
        "monitoring", "curl -sf http://127.0.0.1:9090/api/v1/status/config | grep -q 'scrape_interval: 2s'"
    )
