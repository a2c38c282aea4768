"""The unit files: clean for systemd itself, and true to the rules of a drain."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runner import bundle
from runner.settings import Settings

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "systemd").glob("*.service"))
LIFECYCLE_MAXIMUM = 48 * 3600  # EC2 Auto Scaling: the longest that a hook can hold an instance, seconds
ANY_UNIT = pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)


def directives(unit: Path) -> dict[str, list[str]]:
    """Every assignment by `Section.Name`, in order."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(f"{section}.{name}", []).append(value)
    return found


def service(name: str, unit: str) -> str:
    (value,) = directives(ROOT / "systemd" / f"runner-{unit}.service")[f"Service.{name}"]
    return value


def number(pattern: str, *path: str) -> float:
    """The one number this pattern finds in a file of the Terraform tree."""
    (found,) = re.findall(pattern, ROOT.joinpath("terraform", *path).read_text())
    return float(found)


def drains() -> dict[str, float]:
    """How long a drain of each pool may take, by environment and pool; and the longest that may be asked for."""
    variables = ("stacks", "workers", "variables.tf")
    default = number(r"drain_seconds\s*=\s*optional\(number, (\d+)\)", *variables)
    found = {"default": default, "longest": number(r"pool\.drain_seconds <= (\d+)", *variables)}
    for values in ROOT.glob("terraform/envs/*/workers.tfvars"):
        for pool, body in re.findall(r"^ +([\w-]+) += {(.*)}$", values.read_text(), re.M):
            given = re.search(r"drain_seconds = (\d+)", body)
            found[f"{values.parent.name}/{pool}"] = float(given[1]) if given else default
    return found


def hook_maximum(drain_seconds: float) -> float:
    """How long the terminate hook that modules/node-group makes for this drain can hold an instance, seconds."""
    least, share, beats = re.findall(
        r"max\((\d+), ceil\(var\.drain_seconds \* ([\d.]+) / (\d+)\)\)",
        (ROOT / "terraform/modules/node-group/main.tf").read_text(),
    )[0]
    return min(LIFECYCLE_MAXIMUM, int(beats) * max(int(least), math.ceil(drain_seconds * float(share) / int(beats))))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_to_say(tmp_path: Path) -> None:
    # Given the units as they are installed, with a program where theirs will be
    program = tmp_path / "runner"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in (ROOT / "systemd").glob("runner*"):
        text = re.sub(r"/opt/sluice/\S+/bin/runner", str(program), path.read_text())
        (tmp_path / path.name.replace("@.", "@abc123.")).write_text(text)
    units = [str(p) for p in tmp_path.iterdir() if p != program]
    assert len(units) == 9
    # When systemd reads them
    verified = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    # Then it has no warning, and finds little to attack
    assert (verified.returncode, verified.stderr) == (0, "")
    for unit in units:
        if unit.endswith(".service"):
            judged = subprocess.run(
                ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit],
                capture_output=True,
                text=True,
            )
            assert judged.returncode == 0, judged.stdout.splitlines()[-1]


@ANY_UNIT
def test_every_service_keeps_the_rules(unit: Path) -> None:
    found = directives(unit)
    assert found["Service.Type"] == ["notify"]
    assert found["Service.EnvironmentFile"][:2] == ["/etc/sluice/node.env", "-/etc/sluice/secrets.env"]
    assert int(found["Service.WatchdogSec"][0]) > 0
    assert found["Service.Restart"][0] in ("always", "on-failure") and int(found["Service.RestartSec"][0]) > 0
    assert found["Unit.StartLimitIntervalSec"] == ["0"]
    assert int(found["Service.TimeoutAbortSec"][0]) <= 10  # or one that hangs is waited for as long as for a drain
    assert found["Service.User"] == ["root" if unit.stem == "runner-agent" else "sluice"]
    assert found["Service.CapabilityBoundingSet"] == [""] and found["Service.NoNewPrivileges"] == ["yes"]
    assert found["Service.Slice"][0] in {p.name for p in (ROOT / "systemd").glob("*.slice")}
    assert "Service.TimeoutStopSec" in found
    # No shell between systemd and the process: it would take the TERM, and be the main process.
    (start,) = found["Service.ExecStart"]
    role = unit.stem.removeprefix("runner-").rstrip("@")
    assert re.fullmatch(rf"(/usr/bin/env (\w+=\S+ )+)?/opt/sluice/\S+/venv/bin/runner {role}", start), start


@ANY_UNIT
def test_a_stop_reaches_the_process_alone(unit: Path) -> None:
    assert directives(unit)["Service.KillMode"] == ["mixed"]


@ANY_UNIT
def test_each_deadline_and_each_way_to_kill_says_why(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    for name in ("KillMode", "TimeoutStopSec", "TimeoutAbortSec", "WatchdogSec", "Restart"):
        (at,) = (i for i, line in enumerate(lines) if line.startswith(f"{name}="))
        assert lines[at - 1].startswith("#"), f"{unit.name}: {name} has no comment"


def test_a_worker_is_stopped_by_nobody_but_its_drain() -> None:
    assert service("TimeoutStopSec", "worker@") == "infinity"
    assert service("OOMPolicy", "worker@") == "continue"
    assert service("Restart", "worker@") == "on-failure"  # exit 0: drained
    assert "SLUICE_RELEASE=%i" in service("ExecStart", "worker@")


def test_the_deadlines_nest() -> None:
    """task timeout < drain deadline < the unit's stop timeout < what the lifecycle hook can hold."""
    shipped = [ROOT / "runner/examples/temperatures", bundle.fetch(bundle.BUILTIN, storage=None, cache=Path())]
    tasks = [t.timeout_seconds for d in shipped for spec in bundle.validate(d) for t in spec.tasks]
    longest_task = max(t for t in tasks if t)
    pools = drains()
    assert len(pools) >= 6
    assert Settings().drain_seconds == pools["default"]
    stop = math.inf if service("TimeoutStopSec", "worker@") == "infinity" else 0
    for pool, drain in pools.items():
        if not pool.startswith("local/"):  # whose drains are short, so that a demo never waits long
            assert longest_task < drain, pool
        assert drain < stop, pool
        assert drain < hook_maximum(drain), f"{pool}: the hook ends before the drain does"
    assert pools["longest"] < LIFECYCLE_MAXIMUM

    main = ("stacks", "control", "main.tf")
    control = number(r"(?s)module \"schedulers\".*?drain_seconds\s*=\s*(\d+)", *main)
    assert control == number(r"(?s)module \"web\" .*?drain_seconds\s*=\s*(\d+)", *main)
    for unit in ("scheduler", "web"):
        assert control < int(service("TimeoutStopSec", unit)) < hook_maximum(control)


def test_a_worker_that_hangs_is_ended_before_its_leases_are() -> None:
    settings = Settings()
    assert 3 * settings.heartbeat_seconds < int(service("WatchdogSec", "worker@")) < settings.lease_seconds


def test_the_load_balancer_reaches_the_web() -> None:
    assert service("Environment", "web") == "SLUICE_WEB_HOST=0.0.0.0"
    assert Settings().web_port == number(
        r"port\s*=\s*(\d+)\n\s*protocol\s*=\s*\"HTTP\"", "modules", "load-balancer", "main.tf"
    )


def test_bootstrap_enables_what_can_be_enabled_and_nothing_else() -> None:
    # Given that a service belongs to the agent, which knows whether this node serves or drains
    enabled = {u.name for u in UNITS if any(name.startswith("Install.") for name in directives(u))}
    bootstrap = (ROOT / "scripts/bootstrap").read_text()
    # Then but for Flower, which the monitoring host's own role enables, it is the agent alone
    assert set(re.findall(r"systemctl enable --now (\S+)", bootstrap)) == {"runner-agent.service"}
    assert enabled == {"runner-agent.service", "runner-flower.service"}


def test_the_growing_pause_is_one_that_systemd_knows(tmp_path: Path) -> None:
    """Before 254 it does not: there the file is not installed, and no unit has these lines itself."""
    lines = directives(ROOT / "systemd/backoff.conf")
    assert set(lines) == {"Service.RestartSteps", "Service.RestartMaxDelaySec"}
    assert not any(name in directives(unit) for unit in UNITS for name in lines)
    for unit in UNITS:
        assert int(service("RestartSec", unit.stem.removeprefix("runner-"))) < int(
            lines["Service.RestartMaxDelaySec"][0]
        )
