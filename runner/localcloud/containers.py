"""A container engine that runs machines: found by itself, told in argv lists, kept apart from the user's own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.settings import SluiceError, UsageError

LABEL = "sluice.directory"  # on each container: the local cloud it belongs to
_RUNROOT = "/run/sluice/containers"  # gone after a restart of the host, as podman wants it
_MAX_FILES = 65536
_REMOVE_SECONDS = 600.0  # a whole fleet, on a machine that is busy: nothing may be left
_MAX_PROCESSES = 16384  # podman lowers its own limit to half of what the kernel would give


@dataclass(frozen=True)
class Engine:
    """Podman or Docker; `command` is how its client is called, global options included."""

    name: str
    command: tuple[str, ...]

    def run(self, *args: str, check: bool = True, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Call the engine. Raises SluiceError with the last line it said if it fails and check is true."""
        argv = [*self.command, *args]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=seconds)
        except OSError as e:
            raise SluiceError(f"{self.name} cannot be run: {e.strerror or e}") from None
        except subprocess.TimeoutExpired:
            raise SluiceError(f"{self.name} {args[0]} did not end within {seconds:g} s") from None
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()[-1]
            raise SluiceError(f"{self.name} {args[0]}: {said}")
        return done

    def inspect(self, name: str) -> dict[str, Any] | None:
        """The state of a container (`Status`, `Pid`, `ExitCode`, …); None if there is none of that name."""
        done = self.run("container", "inspect", name, check=False)
        if done.returncode != 0:
            return None
        state: dict[str, Any] = json.loads(done.stdout)[0]["State"]
        return state

    def containers(self, directory: Path) -> list[str]:
        """The names of a local cloud's containers, running or not."""
        done = self.run("ps", "--all", "--filter", f"label={LABEL}={directory}", "--format", "{{.Names}}")
        return done.stdout.split()

    def remove(self, *names: str) -> None:
        """KILL containers and remove them with their volumes; those that are not there are no error."""
        if names:
            at_once = ["--time", "0"] if self.name == "podman" else []  # Docker's rm does not wait
            self.run("rm", "--force", *at_once, "--volumes", *names, check=False, seconds=_REMOVE_SECONDS)


@dataclass(frozen=True)
class Container:
    """What a machine is made of. `mounts`: file or directory of the host → where in the machine, and how."""

    name: str
    hostname: str
    image: str
    directory: Path
    console: Path
    mounts: Mapping[Path, str]


def cache_directory() -> Path:
    """Where images are kept between local clouds: SLUICE_CACHE_DIR, or `sluice` in the user's cache directory."""
    named = os.environ.get("SLUICE_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named).absolute() if named else Path(base) / "sluice"


def find() -> Engine:
    """Podman if it is there, else a Docker that answers. Raises UsageError naming what is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise UsageError(
            "container nodes need root on Linux",
            "run it as root, or without --nodes containers: processes need no root",
        )
    if shutil.which("podman"):
        store = cache_directory() / "containers"
        command = ["podman", "--root", str(store), "--runroot", _RUNROOT]
        if shutil.which("runc"):  # crun before 1.8 cannot start systemd on the older control groups
            command += ["--runtime", "runc"]
        return Engine("podman", tuple(command))
    if shutil.which("docker"):
        engine = Engine("docker", ("docker",))
        if engine.run("info", check=False).returncode == 0:
            return engine
        raise UsageError("Docker's daemon does not answer", "start it, or apt-get install podman runc")
    raise UsageError("there is no container engine", "apt-get install podman runc")


def create_argv(engine: Engine, container: Container) -> list[str]:
    """The arguments that make a machine, to be started later."""
    return ["create", *_machine_argv(engine, container)]


def run_argv(engine: Engine, container: Container) -> list[str]:
    """The arguments that make a machine and start it."""
    return ["run", "--detach", *_machine_argv(engine, container)]


def _machine_argv(engine: Engine, container: Container) -> list[str]:
    """What a machine is made of. Pure, but for the limits of this process, which nothing can exceed."""
    files = _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    processes = _limit(resource.RLIMIT_NPROC, _MAX_PROCESSES)
    argv = ["--tty", "--name", container.name, "--hostname", container.hostname]
    argv += ["--label", f"{LABEL}={container.directory}"]
    # The address comes from bridge.plug(), the same way with either engine.
    argv += ["--network", "none"]
    # Said because the engines ask for more than a host that is a container itself may give.
    argv += ["--ulimit", f"nofile={files}:{files}"]
    argv += ["--ulimit", f"nproc={processes}:{processes}"]
    # What systemd needs to give its services namespaces of their own; PTRACE, to see them where /proc hides them.
    argv += ["--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE"]
    argv += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
    if engine.name == "podman":
        argv += ["--systemd", "always"]
        argv += ["--log-driver", "k8s-file", "--log-opt", f"path={container.console}"]
    else:
        argv += ["--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--env", "container=docker"]
        argv += ["--stop-signal", "SIGRTMIN+3"]
        for path in ("/run", "/run/lock", "/tmp"):
            argv += ["--tmpfs", path]
    for source, target in container.mounts.items():
        argv += ["--volume", f"{source}:{target}"]
    return [*argv, container.image, "/sbin/init"]


def execute(engine: Engine, name: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a machine, as root; the caller looks at its exit status."""
    return engine.run("exec", name, *command, check=False)


def _limit(which: int, wanted: int) -> int:
    hard = resource.getrlimit(which)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
