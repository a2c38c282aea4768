"""`runner dev`: the way an author works. Everything on this machine, and the folder published again when it changes.

The processes are the ones of production, on embedded engines; only the cloud around them is missing.
"""

from __future__ import annotations

import getpass
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import structlog
from rich.console import Console

from runner import bundle
from runner.bundle import BundleError
from runner.localcloud.engines import Postgres, Valkey, free_port, is_free
from runner.localcloud.state import locked
from runner.settings import SluiceError, UsageError
from runner.state import migrate
from runner.state.db import connect
from runner.storage import Storage

log = structlog.get_logger(__name__)
console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

LOOK_SECONDS = 0.5
STOP_SECONDS = 10.0


class Environment:
    """Engines, a scheduler, a worker and the pages, in one directory beside the pipelines."""

    def __init__(self, pipelines: Path, *, port: int, slots: int) -> None:
        self.pipelines = pipelines.resolve()
        self.home = Path(os.environ.get("SLUICE_DEV_DIR", ".sluice/dev")).resolve()
        self.port = port
        self.slots = slots
        self.postgres = Postgres(self.home / "postgres")
        self.valkey = Valkey(self.home / "valkey")
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring everything up; the folder is published first, so that a broken file is said before anything else."""
        self.environment = {
            **os.environ,
            "SLUICE_ENV": "dev",
            "SLUICE_DATABASE_URL": self._database(),
            "SLUICE_BROKER_URL": self.valkey.start(),
            "SLUICE_ARTIFACTS_URL": f"file://{self.home}/artifacts",
            "SLUICE_STORAGE_URL": f"file://{self.home}/storage",
            "SLUICE_SLOTS": str(self.slots),
            "SLUICE_WEB_PORT": str(self.port),
            "SLUICE_HEARTBEAT_SECONDS": "1",
        }
        for role in ("scheduler", "worker", "web"):
            self._spawn(role)

    def publish(self) -> None:
        """Make the folder's content the active version, or say what is wrong with it and leave the last one active."""
        engine = connect(self.environment["SLUICE_DATABASE_URL"])
        storage = Storage.open(self.environment["SLUICE_ARTIFACTS_URL"])
        try:
            with engine.begin() as connection:
                done = bundle.publish(self.pipelines, storage=storage, connection=connection, who=getpass.getuser())
        except BundleError as e:
            console.print("[bold red]not published[/]; the last good version stays active", markup=True)
            for problem in e.problems:
                console.print(f"  {problem}", markup=False)
            return
        finally:
            engine.dispose()
        names = ", ".join(s.dag_id for s in done.specs)
        console.print(f"[green]published[/] {done.name} {done.version}: {names}")

    def exports(self) -> str:
        """The shell command that points `runner` at this environment."""
        names = ("SLUICE_DATABASE_URL", "SLUICE_STORAGE_URL")
        return "export " + " ".join(f"{n}={shlex.quote(self.environment[n])}" for n in names)

    def check(self) -> None:
        """Raise SluiceError if one of the processes has ended."""
        for role, child in self.children.items():
            if child.poll() is not None:
                raise SluiceError(f"the {role} exited with status {child.returncode}", f"see {self._log(role)}")

    def stop(self) -> None:
        """Let running tasks finish for a few seconds, then end everything."""
        for child in self.children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.valkey.stop()
        self.postgres.stop()

    def _database(self) -> str:
        self.postgres.start()
        url = self.postgres.create_database("sluice")
        migrate.upgrade(url)
        return url

    def _spawn(self, role: str) -> None:
        environment = {
            **self.environment,
            "SLUICE_ROLE": role,
            "SLUICE_NODE_ID": f"dev-{role}",
            "SLUICE_HOME": str(self.home / role),
        }
        with self._log(role).open("ab") as output:
            self.children[role] = subprocess.Popen(
                [sys.executable, "-m", "runner.cli", role],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is this process's to pass on, once
            )

    def _log(self, role: str) -> Path:
        return self.home / f"{role}.log"


def run(pipelines: Path, *, port: int, slots: int) -> int:
    """Entry point of `runner dev`: until Ctrl-C."""
    if not pipelines.is_dir():
        raise UsageError(f"{pipelines} is not a folder of pipelines", "runner dev PATH/TO/PIPELINES")
    if port and not is_free(port):
        raise SluiceError(f"port {port} of 127.0.0.1 is taken", "--port 0 finds a free one")
    environment = Environment(pipelines, port=port or free_port(), slots=slots)
    environment.home.mkdir(parents=True, exist_ok=True)
    with locked(environment.home / ".dev.lock", f"another `runner dev` works in {environment.home}"):
        return _work(environment)


def _work(environment: Environment) -> int:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    console.print(f"starting in {environment.home}", markup=False)
    try:
        environment.start()
        environment.publish()
        console.print(f"to use `runner` in another terminal: {environment.exports()}", markup=False)
        address = f"http://127.0.0.1:{environment.port}"
        console.print(f"pages on {address}; watching {environment.pipelines}; Ctrl-C stops", markup=False)
        seen = _state(environment.pipelines)
        while not stop.wait(LOOK_SECONDS):
            environment.check()
            now = _state(environment.pipelines)
            if now != seen:
                seen = now
                environment.publish()
    finally:
        console.print("stopping; tasks that run have 10 seconds")
        environment.stop()
    return 0


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file does: modification time and size, by path."""
    out = {}
    for path in folder.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            stat = path.stat()
            out[str(path)] = (stat.st_mtime_ns, stat.st_size)
    return out
