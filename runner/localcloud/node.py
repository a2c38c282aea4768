"""One EC2 instance as a directory and a tree of processes: what cloud-init and systemd do on a real one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import yaml

from runner.localcloud import engines, process
from runner.localcloud import state as local_state
from runner.localcloud.cloud import Cloud
from runner.localcloud.releases import Releases
from runner.rollout.sign import trusted
from runner.settings import SluiceError

NODE_ENV = "/etc/sluice/node.env"
MARKER = "SLUICE_MACHINE"  # in the environment of everything that runs on a node: its directory
WEB_PORT = 8080
AGENT_COMMAND = (sys.executable, "-m", "runner.cli", "agent")
OFF = "power off"
_WAIT_SECONDS = 0.3
_LOOK_SECONDS = 0.5
_STEADY_SECONDS = 60.0
_BACKOFF_MAX_SECONDS = 30.0
# A container's console puts the time and the unit before each line, and a carriage return behind it.
_ERROR = re.compile(r"^(?:\S+ \S+ \w .*?)?(error: .*?)\r?$", re.MULTILINE)


class BootError(SluiceError):
    """This machine cannot come up, and trying again would not help."""


class _Interrupted(Exception):
    """Power off or reboot while the node was doing something else."""


@dataclass(frozen=True)
class Host:
    """What all nodes of one local cloud share."""

    directory: Path
    imds_url: str
    releases: Releases
    agent_command: tuple[str, ...] = AGENT_COMMAND
    _web_ports: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def home(self, instance_id: str) -> Path:
        """A node's own directory."""
        return self.directory / "nodes" / instance_id

    def take_web_port(self, instance_id: str) -> int:
        """The port of this web node: all share one address, so one at a time has that of the documentation."""
        with self._lock:
            self._web_ports.pop(instance_id, None)
            first = WEB_PORT not in self._web_ports.values() and engines.is_free(WEB_PORT)
            self._web_ports[instance_id] = WEB_PORT if first else engines.free_port()
            return self._web_ports[instance_id]

    def give_back_web_port(self, instance_id: str) -> None:
        """The machine is off."""
        with self._lock:
            self._web_ports.pop(instance_id, None)


class Node:
    """Boots the instance and keeps its agent running, in a thread of its own, until power_off() or detach()."""

    def __init__(self, instance_id: str, host: Host, cloud: Cloud) -> None:
        self.id = instance_id
        self.host = host
        self.cloud = cloud
        self.home = host.home(instance_id)
        self._since = time.monotonic()
        self._off = threading.Event()
        self._reboot = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=instance_id, daemon=True)

    def power_on(self) -> None:
        """Boot; a node whose agent already runs (the supervisor was restarted) is adopted as it is."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def power_off(self, why: str) -> None:
        """Kill everything that runs on the node, as EC2 does; the directory stays, with its logs."""
        self._off.set()
        self._wake.set()
        self._thread.join(timeout=10)
        self.host.give_back_web_port(self.id)
        self.say(f"{OFF}: {why}; {kill(self.home)} processes killed")

    def reboot(self) -> None:
        """Pull the plug and put it back."""
        self._reboot.set()
        self._wake.set()

    def detach(self) -> None:
        """Stop looking after the node and leave it running."""
        self._off.set()
        self._wake.set()
        self._thread.join(timeout=10)

    def say(self, text: str) -> None:
        """One line on the node's console, with the time and the seconds since power on."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        with (self.home / "console.log").open("a") as console:
            console.write(f"{stamp}Z [{time.monotonic() - self._since:8.2f}] {text}\n")

    def _run(self) -> None:
        while not self._off.is_set():
            self._since = time.monotonic()
            self._reboot.clear()
            self._wake.clear()
            if self._off.is_set():  # it was set between the two lines above: the wake-up call is lost
                return
            try:
                if process.alive(pidfile(self.home)):
                    self.say("adopted: its agent was running already")
                    env = None
                else:
                    env = self._boot()
                self._supervise(env)
            except _Interrupted:
                if self._reboot.is_set() and not self._off.is_set():
                    self.say(f"reboot; {kill(self.home)} processes killed")
            except BootError as e:
                self._give_up(e)
            except Exception as e:  # whatever happens to one machine must not reach the others
                self.say(f"error: {type(e).__name__}: {e}; trying again in 5 s")
                self._wake.wait(5.0)

    def _boot(self) -> dict[str, str]:
        """The way from power on to the agent's environment. Raises BootError."""
        self.say(f"power on: instance {self.id}")
        env = read_user_data(self.cloud.user_data(self.id), self.home)
        self.say(f"user data: role {env.get('SLUICE_ROLE', '?')}, pool {env.get('SLUICE_POOL') or '-'}")
        release = self._release_tag()
        site = self._release(release, env.get("SLUICE_RELEASE_KEY", ""))
        shared = {k: v for k, v in os.environ.items() if not k.startswith(("SLUICE_", "AWS_", "PYTHON"))}
        # What the user data says wins over what the local cloud would give any process.
        return (
            shared
            | local_state.load(self.host.directory).environment()
            | env
            | {
                "SLUICE_HOME": str(self.home),
                "SLUICE_NODE_ID": self.id,
                "SLUICE_INSTANCE_ID": self.id,
                "SLUICE_IMDS_URL": f"{self.host.imds_url}/{self.id}",
                "SLUICE_RELEASE": release,
                "PYTHONPATH": str(site),
                "PYTHONUNBUFFERED": "1",
                MARKER: str(self.home),
            }
            | ({"SLUICE_WEB_PORT": str(self.host.take_web_port(self.id))} if env.get("SLUICE_ROLE") == "web" else {})
        )

    def _release_tag(self) -> str:
        said = False
        while not (release := self.cloud.tag(self.id, "Release")):
            if not said:
                self.say("waiting: the tag Release is empty")
            said = True
            self._pause(_WAIT_SECONDS)
        return release

    def _release(self, release: str, key: str) -> Path:
        """Fetch the release and unpack it on this node; returns the directory of its Python packages."""
        said = False
        while True:
            try:
                site = self.host.releases.install(release, self.home / "release", trusted(key))
            except SluiceError as e:
                raise BootError(e.message, e.hint) from None
            if site is not None:
                self.say(f"release {release} unpacked")
                return site
            if not said:
                self.say(f"waiting: release {release} is not in the artifacts yet")
            said = True
            self._pause(_WAIT_SECONDS)

    def _supervise(self, env: Mapping[str, str] | None) -> None:
        """Keep the agent running, as systemd would; env None: it runs already."""
        pause = 1.0
        while True:
            if env is None:
                running = process.read(pidfile(self.home))
            else:
                self._pause(0)
                running = process.start(
                    self.host.agent_command, env, self.home / "agent.log", pidfile(self.home), cwd=self.home
                )
                self.say(f"agent started, pid {running.pid}")
            began = time.monotonic()
            while running is not None and running.alive():
                self._pause(_LOOK_SECONDS)
            code = process.exit_code(running) if running is not None else None
            if code == 0:
                self.say("agent ended by itself: it has nothing more to do here")
                while True:
                    self._pause(60.0)
            if time.monotonic() - began > _STEADY_SECONDS:
                pause = 1.0
            ended = "ended" if code is None else f"killed by {_signal_name(-code)}" if code < 0 else f"exit {code}"
            self.say(f"agent {ended}; starting again in {pause:g} s{_last_line(self.home / 'agent.log')}")
            # Its services are left alone, as systemd would: they are units of their own, and the next agent finds them.
            self._pause(pause)
            pause = min(pause * 2, _BACKOFF_MAX_SECONDS)
            env = env if env is not None else self._boot()

    def _pause(self, seconds: float) -> None:
        """Wait, but not past power off or reboot: then this raises _Interrupted."""
        self._wake.wait(seconds)
        if self._off.is_set() or self._reboot.is_set():
            raise _Interrupted

    def _give_up(self, error: BootError) -> None:
        self.say(f"boot failed: {error.message}")
        try:
            hooks = self.cloud.abandon_launch(self.id)
            self.say(f"launch hook {', '.join(hooks)}: ABANDON" if hooks else "no launch hook is waiting")
        except Exception as e:
            self.say(f"the launch hook could not be answered: {e}")
        self._wake.wait()


def pidfile(home: Path) -> Path:
    """The pid file of a node's agent."""
    return home / "agent.pid"


def last_words(home: Path) -> str:
    """The last line of a node's console, without its time; empty if there is none."""
    with contextlib.suppress(OSError, IndexError):
        return (home / "console.log").read_text().strip().splitlines()[-1].partition("] ")[2]
    return ""


def trouble(home: Path) -> str:
    """Why the machine is not up, as far as it can be told: its service's last error, else its console's last line."""
    for log in sorted(home.glob("log/*.log")):
        with contextlib.suppress(OSError, IndexError):
            return str(_ERROR.findall(log.read_text(errors="replace"))[-1])
    return last_words(home)


def is_off(home: Path) -> bool:
    """Whether the machine was switched off: only its logs are left."""
    return last_words(home).startswith(OFF)


def kill(home: Path) -> int:
    """KILL all processes of the node in this directory, whoever their parent is by now; returns how many."""
    agent = process.read(pidfile(home))
    killed = process.kill_tree(agent.pid if agent else None, f"{MARKER}={home}")
    pidfile(home).unlink(missing_ok=True)
    return killed


def read_user_data(data: bytes, home: Path) -> dict[str, str]:
    """Do what cloud-init does with `write_files`, below the node's directory; returns the content of node.env.

    Raises BootError if it is no cloud-config or holds no node.env.
    """
    if not data.lstrip().startswith(b"#cloud-config"):
        raise BootError(f"user data is not a #cloud-config: {data[:40]!r}")
    try:
        config = yaml.safe_load(data)
        files = {str(f["path"]): str(f["content"]) for f in config["write_files"]}
    except (yaml.YAMLError, KeyError, TypeError) as e:
        raise BootError(f"user data cannot be read: {type(e).__name__} {' '.join(str(e).split())}") from None
    if NODE_ENV not in files:
        raise BootError(f"user data writes no {NODE_ENV}, only {', '.join(files) or 'nothing'}")
    for name, content in files.items():
        if ".." in PurePosixPath(name).parts:
            raise BootError(f"user data writes outside the machine: {name}")
        target = home / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    return parse_env(files[NODE_ENV])


def parse_env(text: str) -> dict[str, str]:
    """The assignments of a systemd EnvironmentFile: KEY=VALUE lines, comments, optional quotes."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            found[name.strip()] = value
    return found


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return str(number)


def _last_line(log: Path) -> str:
    """What the log said last, to be appended to a line."""
    with contextlib.suppress(OSError, IndexError), log.open("rb") as f:
        f.seek(max(0, log.stat().st_size - 2000))
        return f" (it said: {f.read().decode(errors='replace').strip().splitlines()[-1][:200]})"
    return ""
