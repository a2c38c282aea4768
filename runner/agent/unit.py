"""The node's services as units of systemd, started and stopped through systemctl.

A worker's unit is an instance per release, so that two can run side by side; a scheduler or web process has one. Which
node a unit is lies in `<home>/<release or role>.env`, which the unit reads: the first worker of a machine is the
machine's own node, one that comes beside it is `<machine>.<release>`. systemd knows the rest.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import structlog

from runner.agent.service import Backoff, SupervisorError
from runner.settings import Settings

log = structlog.get_logger("agent")

OPT = Path("/opt/sluice")
_CALL_SECONDS = 10.0
_DOWN = ("inactive", "failed")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_APART = (
    "--quiet",
    "--no-block",
    "--property=EnvironmentFile=/etc/sluice/node.env",
    "--property=EnvironmentFile=-/etc/sluice/secrets.env",
    "--property=Slice=runner-control.slice",
    "--property=Nice=10",  # beside tasks that run
    "--property=RuntimeMaxSec=1800",
    "--property=ProtectHome=yes",
    "--property=PrivateTmp=yes",
)
_SHOWN = "Id,ActiveState,SubState,ActiveExitTimestampMonotonic,Result,ExecMainStatus"


def show(pattern: str) -> dict[str, dict[str, str]]:
    """The properties of all loaded units of this name or pattern. Raises SupervisorError."""
    out = systemctl("show", f"--property={_SHOWN}", "--", pattern)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in out.split("\n\n")]
    return {b["Id"]: b for b in blocks if "Id" in b}


def systemctl(*args: str) -> str:
    """Run systemctl and return what it says. Raises SupervisorError."""
    return _call("systemctl", *args)


def _call(*argv: str) -> str:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise SupervisorError(f"{argv[0]} {argv[1]} did not answer within {_CALL_SECONDS:g} s") from None
    except OSError as e:
        raise SupervisorError(f"{argv[0]}: {e.strerror}") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit {done.returncode}"
        raise SupervisorError(f"{' '.join(argv)}: {said}")
    return done.stdout


class UnitService:
    """One unit. systemd restarts it after a failure; after an exit of its own accord, start() does."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._backoff = Backoff()
        self._was_up = False
        self._seen: dict[str, str] = {}

    def alive(self) -> bool:
        """Whether it runs, starts, stops, or waits to be started again."""
        self._seen = self._state()
        up = self._seen["ActiveState"] not in _DOWN
        if self._was_up and not up:
            log.info("service is down", unit=self.unit)
            self._backoff.ended()
        self._was_up = up
        return up

    def resting(self) -> bool:
        """Whether systemd waits to start it again after a failure, as alive() has seen it last."""
        return self._seen.get("SubState") == "auto-restart"

    def start(self) -> bool:
        if self.alive() or not self._backoff.over():
            return False
        # Not waited for: it may take minutes until a worker is ready, and the agent has other things to look at.
        systemctl("start", "--no-block", "--", self.unit)
        self._backoff.started()
        self._was_up = True
        log.info("service started", unit=self.unit)
        return True

    def stop(self, grace_seconds: float) -> bool:
        if not self.alive():
            return True
        state = self._seen
        if state["ActiveState"] != "deactivating":
            log.info("service is asked to stop", unit=self.unit, grace_seconds=grace_seconds)
            systemctl("stop", "--no-block", "--", self.unit)
        elif _seconds_since(state["ActiveExitTimestampMonotonic"]) > grace_seconds:
            # The unit itself has no limit (TimeoutStopSec=infinity): the deadline is known here.
            log.warning("service did not stop in time and is killed", unit=self.unit)
            systemctl("kill", "--kill-who=all", "--signal=KILL", "--", self.unit)
        return not self.alive()

    def _state(self) -> dict[str, str]:
        found = show(self.unit)
        if self.unit not in found:
            raise SupervisorError(f"systemd does not say what {self.unit} does")
        return found[self.unit]


class UnitSupervisor:
    """The units of this node's role."""

    owns = False

    def __init__(self, settings: Settings, node_id: str) -> None:
        self._role = settings.role
        self.many = settings.role == "worker"
        self._boot = settings.release
        self._machine = node_id
        self._home = settings.home
        self._services: dict[str, UnitService] = {}
        self._install_pause = Backoff()

    def running(self) -> list[str]:
        prefix, suffix = self._unit("*").split("*") if self.many else (self._unit(""), "")
        up = [u for u, state in show(self._unit("*")).items() if state["ActiveState"] not in _DOWN]
        return [u[len(prefix) : len(u) - len(suffix)] if self.many else self.release() for u in up]

    def release(self) -> str:
        if self.many:
            return self._boot
        return self._read(self._role).get("SLUICE_RELEASE", self._boot)

    def node_id(self, release: str) -> str:
        """As it was once decided; the machine's own if no other release has that."""
        if not self.many:
            return self._machine
        found = self._read(release).get("SLUICE_NODE_ID")
        if found:
            return found
        taken = any(self._read(path.stem).get("SLUICE_NODE_ID") == self._machine for path in self._home.glob("*.env"))
        node_id = f"{self._machine}.{release}" if taken else self._machine
        self._write(release, {"SLUICE_NODE_ID": node_id})
        return node_id

    def service(self, release: str) -> UnitService:
        unit = self._unit(release)
        return self._services.setdefault(unit, UnitService(unit))

    def installed(self, release: str) -> bool:
        return (OPT / "releases" / release / "venv/.complete").exists()

    def install(self, release: str) -> None:
        unit = f"runner-install-{_checked(release)}.service"
        state = show(unit)[unit]["ActiveState"]
        if state not in _DOWN:
            return
        if state == "failed":
            why = _last_error(unit)
            systemctl("reset-failed", "--", unit)
            raise SupervisorError(why)
        if not self._install_pause.over():
            return
        self._install_pause.ended()
        # A process of its own: it outlives this one, and may write where the agent may not.
        _call("systemd-run", *_APART, f"--unit={unit}", f"{OPT}/current/venv/bin/runner", "install", release)
        log.info("release is being installed", release=release)

    def current(self) -> str:
        return (OPT / "current").resolve().name

    def switch(self, release: str) -> None:
        if not self.many:
            self._write(self._role, {"SLUICE_RELEASE": release})
        part = OPT / ".current.part"
        part.unlink(missing_ok=True)
        part.symlink_to(OPT / "releases" / release)
        part.replace(OPT / "current")

    def _unit(self, release: str) -> str:
        if not self.many:
            return f"runner-{self._role}.service"
        return f"runner-worker@{release if release == '*' else _checked(release)}.service"

    def _read(self, name: str) -> dict[str, str]:
        try:
            lines = (self._home / f"{name}.env").read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def _write(self, name: str, values: dict[str, str]) -> None:
        part = self._home / f".{name}.part"
        part.write_text("".join(f"{k}={v}\n" for k, v in values.items()))
        part.chmod(0o644)
        part.replace(self._home / f"{name}.env")


def _seconds_since(stamp: str) -> float:
    """Since a time stamp of systemd's: microseconds of the monotonic clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) - int(stamp) / 1e6


def _checked(release: str) -> str:
    if not _NAME.fullmatch(release):
        raise SupervisorError(f"{release!r} cannot be the id of a release")
    return release


def _last_error(unit: str) -> str:
    """Why a unit has failed, in its own words."""
    lines = _call("journalctl", "--no-pager", "--output=cat", "--lines=50", f"--unit={unit}").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else f"{unit} failed; `journalctl -u {unit}` says why"
