"""The node's service as a child process: started, found again after a restart of the agent, stopped for sure."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from runner.agent.service import Backoff, SupervisorError
from runner.settings import Settings
from runner.telemetry import systemd
from runner.telemetry.alive import birth

log = structlog.get_logger("agent")


class ChildSupervisor:
    """The node's one service as a child of the agent: of the agent's own release, and gone when the agent ends."""

    owns = True
    many = False

    def __init__(self, settings: Settings, node_id: str) -> None:
        self._release = settings.release
        self._node_id = node_id
        env = {
            **systemd.without(os.environ),
            "SLUICE_NODE_ID": node_id,
            "SLUICE_HOME": str(settings.home.absolute()),
        }
        self._service = ChildService(
            [sys.executable, "-m", "runner.cli", settings.role],
            env,
            settings.home / "log" / f"{settings.role}.log",
            settings.home / f"{settings.role}.pid",
        )

    def running(self) -> list[str]:
        return [self._release] if self._service.alive() else []

    def release(self) -> str:
        return self._release

    def node_id(self, release: str) -> str:
        return self._node_id

    def service(self, release: str) -> ChildService:
        return self._service

    def installed(self, release: str) -> bool:
        return release == self._release

    def install(self, release: str) -> None:
        raise SupervisorError("a service that is the agent's child cannot change its release in place")

    def current(self) -> str:
        return self._release

    def switch(self, release: str) -> None:
        self.install(release)


class ChildService:
    """One process in a session of its own, known by its pid and its time of birth.

    The child itself writes the pid file before it becomes the service, so that an agent that dies right after
    starting it finds it again.
    """

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log_file: Path, pid_file: Path) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._log_file = log_file
        self._pid_file = pid_file
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._born = ""
        self._backoff = Backoff()
        self._asked_at: float | None = None
        self._adopt()

    @property
    def pid(self) -> int:
        """The process id of the running service, 0 if it does not run."""
        return self._pid if self.alive() else 0

    def alive(self) -> bool:
        """Whether the service runs. Notices an exit, clears up after it and sets the pause before the next start."""
        if not self._pid:
            return False
        if self._runs():
            return True
        code = self._child.returncode if self._child is not None else None
        log.info("service exited", pid=self._pid, status=code, asked=self._asked_at is not None)
        # What it left behind in its group is not watched by anybody any more.
        self._signal_group(signal.SIGKILL)
        self._backoff.ended()
        self._pid, self._child, self._asked_at = 0, None, None
        self._pid_file.unlink(missing_ok=True)
        return False

    def resting(self) -> bool:
        """Never: only start() starts it."""
        return False

    def start(self) -> bool:
        """Start the service unless it runs or the pause after its last exit is not over; True if started."""
        if self.alive() or not self._backoff.over():
            return False
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        self._pid_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as out:
            self._child = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self._record,  # the agent has a single thread
            )
        self._pid, self._born = self._child.pid, birth(self._child.pid) or ""
        self._backoff.started()
        log.info("service started", pid=self._pid, argv=" ".join(self._argv))
        return True

    def stop(self, grace_seconds: float) -> bool:
        """Ask the service to end; once it was asked `grace_seconds` ago, KILL its whole group. True if it is gone.

        Returns at once: call it again until it says True.
        """
        if not self.alive():
            return True
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            log.info("service is asked to stop", pid=self._pid, grace_seconds=grace_seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
        elif time.monotonic() - self._asked_at > grace_seconds:
            log.warning("service did not stop in time and is killed", pid=self._pid)
            self._signal_group(signal.SIGKILL)
            if self._child is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._child.wait(2.0)
        return not self.alive()

    def _runs(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return birth(self._pid) == self._born

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def _record(self) -> None:
        part = self._pid_file.with_name(f".{self._pid_file.name}.part")
        part.write_text(json.dumps({"pid": os.getpid(), "born": birth(os.getpid())}))
        part.replace(self._pid_file)

    def _adopt(self) -> None:
        try:
            found = json.loads(self._pid_file.read_text())
            pid, born = int(found["pid"]), str(found["born"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if birth(pid) == born:
            self._pid, self._born = pid, born
            log.info("found the service running", pid=pid)
