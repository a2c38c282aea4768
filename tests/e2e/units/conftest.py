"""A machine with a real systemd: a container of Debian, with this tree's units and its own agent, scheduler, worker."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine as Database
from sqlalchemy import text

from runner import bundle
from runner.localcloud import containers, image
from runner.localcloud.containers import Container, Engine
from runner.localcloud.engines import Postgres
from runner.rollout.release import archive_key, describe, manifest_key, pack, to_bytes
from runner.state import nodes, queries, transitions
from runner.state.doorbell import Doorbell, celery_app
from runner.storage import Storage

ROOT = Path(__file__).parents[3]
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"  # the host's own, whose packages the machine uses
RELEASES = "opt/sluice/releases"

PIPELINE = """
import json, os, time
from runner.authoring import DAG, task

OUT = "/sluice/shared/out"

def say(what):
    with open(f"{OUT}/ledger", "a") as f:
        f.write(json.dumps({"what": what, "at": time.time(), "user": os.getuid()}) + "\\n")

@task
def t():
    say("start")
    while not os.path.exists(f"{OUT}/go"):
        time.sleep(0.1)
    say("end")

with DAG("slow"):
    t()
"""


# What a release brings to make its environment, in place of the wheels: that of the first one again.
INSTALL = """
import pathlib, shutil, sys
here = pathlib.Path(sys.argv[1])
shutil.copytree("/opt/sluice/releases/r1/venv", here / "venv", symlinks=True)
runner = here / "venv/bin/runner"
runner.write_text(runner.read_text().replace("/opt/sluice/releases/r1", str(here)))
"""


@pytest.fixture(scope="session")
def podman() -> Engine:
    """The engine, with the image of container nodes."""
    engine = containers.find()
    assert engine.name == "podman", "the machine's disk is written from outside: apt-get install podman runc"
    image.ensure(engine)
    return engine


@pytest.fixture
def database(postgres: Postgres, database_url: str) -> Iterator[str]:
    """The database's URL over TCP: the engine itself only has a socket, which the machine may not enter."""
    directory = database_url.partition("host=")[2].partition("&")[0].replace("%2F", "/")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as there:
                there.connect(f"{directory}/.s.PGSQL.5432")
                back = threading.Thread(target=pump, args=(there, self.request), daemon=True)
                back.start()
                pump(self.request, there)
                back.join()

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port, name = server.server_address[1], database_url.partition("@/")[2].partition("?")[0]
    yield f"postgresql://postgres@127.0.0.1:{port}/{name}"
    server.shutdown()
    server.server_close()


def pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes, and then the end of it."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


class Machine:
    """A container that runs systemd, on the host's network."""

    def __init__(self, podman: Engine, home: Path, environment: dict[str, str], engine: Database) -> None:
        self.podman, self.home, self.shared, self.engine = podman, home, home / "shared", engine
        self.name = home.name
        for name in ("out", "storage", "artifacts"):
            (self.shared / name).mkdir(parents=True)
            (self.shared / name).chmod(0o777)
        self.environment = environment
        self.doorbell = Doorbell(celery_app(environment["SLUICE_BROKER_URL"]))
        self.root = Path(self._create())
        subprocess.run(["chroot", str(self.root), "useradd", "--system", "--user-group", "sluice"], check=True)
        self.write("etc/cloud/cloud-init.disabled", "")  # nothing boots it but the test
        for unit in (ROOT / "systemd").glob("runner*"):
            self.write(f"etc/systemd/system/{unit.name}", unit.read_text())
        # As a pool would that works on a path of its own.
        self.drop_in("runner-worker@.service", "ReadWritePaths=/sluice/shared")
        self.release("r1")
        (self.root / "opt/sluice/current").symlink_to("/opt/sluice/releases/r1")
        self.set(**environment)

    def release(self, name: str) -> None:
        """A release as it lies there once it is installed: this tree, and the packages of the tests' environment."""
        venv = f"{RELEASES}/{name}/venv"
        (self.root / venv / "bin").mkdir(parents=True)
        (self.root / venv / f"lib/{PYTHON}/site-packages").mkdir(parents=True)
        (self.root / venv / "bin/python").symlink_to(f"/sluice/python/bin/{PYTHON}")
        self.write(f"{venv}/pyvenv.cfg", "home = /sluice/python/bin\ninclude-system-site-packages = false\n")
        self.write(f"{venv}/lib/{PYTHON}/site-packages/tree.pth", "/sluice/tree\n/sluice/packages\n")
        start = f"#!/{venv}/bin/python\nimport sys\nfrom runner.cli import main\nsys.exit(main())\n"
        self.write(f"{venv}/bin/runner", start, 0o755)
        self.write(f"{venv}/.complete", "")

    def publish_release(self) -> str:
        """A release in the artifacts, whose installation makes the same; its id."""
        files = {f"systemd/{unit.name}": unit.read_bytes() for unit in (ROOT / "systemd").glob("runner*")}
        files["systemd/runner-worker@.service"] += b"# of another release\n"
        files["scripts/install"] = INSTALL.encode()
        manifest = describe(files, "", executable=["scripts/install"])
        archive = pack({**files, "manifest.json": to_bytes(manifest)}, {"scripts/install"})
        manifest["archive"] = {"sha256": hashlib.sha256(archive).hexdigest(), "size": len(archive)}
        release = str(manifest["id"])
        storage = Storage.open(f"file://{self.shared}/artifacts")
        storage.put(archive_key(release), archive)
        storage.put(manifest_key(release), to_bytes(manifest))
        return release

    def set(self, **environment: str) -> None:
        """Write node.env."""
        self.environment |= environment
        self.write("etc/sluice/node.env", "".join(f"{k}={v}\n" for k, v in self.environment.items()), 0o640)

    def drop_in(self, unit: str, *lines: str) -> None:
        """Change a unit for this test."""
        self.write(f"etc/systemd/system/{unit}.d/test.conf", "\n".join(("[Service]", *lines, "")))

    def write(self, name: str, content: str, mode: int = 0o644) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)

    def boot(self) -> None:
        """Power on, with the agent enabled."""
        wants = self.root / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / "runner-agent.service").symlink_to("/etc/systemd/system/runner-agent.service")
        self.power_on()

    def _create(self) -> str:
        packages = next(p for p in sys.path if p.endswith("site-packages"))
        container = Container(
            self.name,
            "m1",
            image.tag(),
            self.home,
            self.home / "console.log",
            {
                Path(packages): "/sluice/packages:ro",
                ROOT / "runner": "/sluice/tree/runner:ro",
                Path(sys.base_prefix): "/sluice/python:ro",
                self.shared: "/sluice/shared",
            },
        )
        argv = containers.run_argv(self.podman, container)
        # On the host's network, where the engines are; not started before its disk is as it shall be.
        argv = ["create", *argv[2:]]
        argv[argv.index("none")] = "host"
        argv[argv.index("--hostname") : argv.index("--hostname") + 2] = []
        self.podman.run(*argv)
        return self.podman.run("mount", self.name).stdout.strip()

    def power_off(self) -> None:
        """Pull the plug."""
        self.podman.run("kill", self.name)

    def power_on(self) -> None:
        """Boot, with the disk as it is, once it is down."""
        self.wait(lambda: not self.up())
        self.podman.run("start", self.name)

    def up(self) -> bool:
        """Whether it runs at all."""
        state = self.podman.inspect(self.name)
        return state is not None and state["Status"] == "running"

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command on it, as root."""
        done = containers.execute(self.podman, self.name, argv)
        assert done.returncode == 0 or not check, f"{argv}: {done.stderr or done.stdout}\n{self.journal()}"
        return done.stdout.strip()

    def show(self, unit: str, *names: str) -> list[str]:
        """Properties of a unit."""
        out = self.run("systemctl", "show", unit, "--property", ",".join(names))
        found = dict(line.split("=", 1) for line in out.splitlines())
        return [found[n] for n in names]

    def journal(self) -> str:
        """What its services said last."""
        argv = ["journalctl", "--no-pager", "-n", "60", "-o", "cat", "-u", "runner-*"]
        return containers.execute(self.podman, self.name, argv).stdout

    def wait(self, what: Callable[[], Any], seconds: float = 240.0) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := what()):
            assert time.monotonic() < deadline, f"not within {seconds:g} s\n{self.journal()}"
            time.sleep(0.2)
        return value

    # --- the database's side ----------------------------------------------------------------------------------

    def push(self) -> None:
        """Publish the pipeline."""
        folder = self.home / "pipelines"
        folder.mkdir()
        (folder / "pipeline.py").write_text(textwrap.dedent(PIPELINE))
        with self.engine.begin() as c:
            storage = Storage.open(f"file://{self.shared}/artifacts")
            bundle.publish(folder, storage=storage, connection=c, who="test")

    def start_run(self) -> int:
        """Start a run of the slow task; it ends when go() is called."""
        import datetime as dt

        with self.engine.begin() as c:
            run = transitions.create_run(c, "slow", dt.datetime.now(dt.UTC))
            assert run is not None
        self.dispatch()
        return run

    def dispatch(self) -> None:
        """Play the scheduler, on a machine that has none."""
        with self.engine.begin() as c:
            messages = transitions.dispatch(c)
        self.doorbell.ring(messages)

    def go(self) -> None:
        """Let the slow task end."""
        (self.shared / "out/go").touch()

    def ledger(self) -> list[str]:
        """What the task said, in order."""
        import json

        path = self.shared / "out/ledger"
        return [json.loads(line)["what"] for line in path.read_text().splitlines()] if path.exists() else []

    def task(self) -> tuple[str, int, int]:
        """State, interruptions and tries of the newest task."""
        with self.engine.connect() as c:
            row = c.execute(
                text("SELECT state, interruptions, tries FROM task_instance ORDER BY id DESC LIMIT 1")
            ).one()
        return row.state, row.interruptions, row.tries

    def node(self, node_id: str = "m1") -> queries.NodeRow | None:
        with self.engine.connect() as c:
            return queries.node(c, node_id)

    def state(self, node_id: str = "m1") -> str:
        """Of its node, "silent" behind it if it is not heard."""
        row = self.node(node_id)
        if row is None:
            return ""
        return row.state if row.live or row.state != "ready" else "ready, silent"

    def cordon(self) -> None:
        with self.engine.begin() as c:
            assert nodes.cordon(c, "m1", reason="test", by="test", deadline_seconds=600)

    def close(self) -> None:
        self.doorbell.close()
        self.podman.run("umount", self.name, check=False)
        self.podman.remove(self.name)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture
def machine(podman: Engine, database: str, broker_url: str, engine: Database) -> Iterator[Machine]:
    """A machine that is not yet switched on."""
    home = Path(tempfile.mkdtemp(prefix="sluice-unit-"))
    home.chmod(0o755)
    environment = {
        "SLUICE_DATABASE_URL": database,
        "SLUICE_BROKER_URL": broker_url,
        "SLUICE_ARTIFACTS_URL": "file:///sluice/shared/artifacts",
        "SLUICE_STORAGE_URL": "file:///sluice/shared/storage",
        "SLUICE_HOME": "/var/lib/sluice",
        "SLUICE_NODE_ID": "m1",
        "SLUICE_RELEASE": "r1",
        "SLUICE_SLOTS": "2",
        "SLUICE_WEB_PORT": "0",
        "LD_LIBRARY_PATH": "/sluice/python/lib",
    }
    machine = Machine(podman, home, environment, engine)
    yield machine
    machine.close()
