"""A machine with a real systemd: a container of Debian, with this tree's units and its own agent, scheduler, worker."""

from __future__ import annotations

import contextlib
import os
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
from sqlalchemy import Engine, text

from runner import bundle
from runner.localcloud.engines import Postgres
from runner.state import nodes, queries, transitions
from runner.state.doorbell import Doorbell, celery_app
from runner.storage import Storage

ROOT = Path(__file__).parents[3]
MIRROR = os.environ.get("SLUICE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES = "systemd,systemd-sysv,dbus,python3,ca-certificates,procps"
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


@pytest.fixture(scope="session")
def system() -> Path:
    """The root of a Debian, made once a machine: it takes two minutes."""
    for program in ("podman", "runc", "debootstrap"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed: apt-get install podman runc debootstrap")
    kept = Path(tempfile.gettempdir()) / "sluice-e2e-bookworm"
    if not kept.is_dir():
        part = Path(tempfile.mkdtemp(prefix="sluice-e2e-"))
        argv = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(part), MIRROR]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        for mounted in ("proc", "sys"):
            subprocess.run(["umount", "-l", str(part / mounted)], capture_output=True)
        for unused in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(part / unused, ignore_errors=True)  # each machine has a copy of its own
        subprocess.run(["chroot", str(part), "useradd", "--system", "--user-group", "sluice"], check=True)
        part.chmod(0o755)
        part.rename(kept)
    return kept


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

    def __init__(self, system: Path, home: Path, environment: dict[str, str], engine: Engine) -> None:
        self.home, self.root, self.shared, self.engine = home, home / "root", home / "shared", engine
        subprocess.run(["cp", "-a", "--reflink=auto", str(system), str(self.root)], check=True)
        for name in ("out", "storage", "artifacts"):
            (self.shared / name).mkdir(parents=True)
            (self.shared / name).chmod(0o777)
        self.environment = environment
        self.doorbell = Doorbell(celery_app(environment["SLUICE_BROKER_URL"]))
        self.podman = ["podman", "--root", f"{home}/pr", "--runroot", f"{home}/rr", "--storage-driver", "vfs"]
        self.podman += ["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"]
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
        packages = next(p for p in sys.path if p.endswith("site-packages"))
        argv = [*self.podman, "run", "--detach", "--name", "m", "--systemd=always", "--network", "host"]
        argv += ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"]
        # What systemd needs to close a service in, as on a machine of its own.
        argv += ["--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined"]
        argv += ["--volume", f"{packages}:/sluice/packages:ro", "--volume", f"{ROOT}/runner:/sluice/tree/runner:ro"]
        argv += ["--volume", f"{sys.base_prefix}:/sluice/python:ro"]
        argv += ["--volume", f"{self.shared}:/sluice/shared", "--rootfs", str(self.root), "/sbin/init"]
        done = subprocess.run(argv, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def power_off(self) -> None:
        """Pull the plug."""
        subprocess.run([*self.podman, "kill", "m"], check=True, capture_output=True)

    def power_on(self) -> None:
        """Boot again, with the disk as it was."""
        self.wait(lambda: not self.up(), 120)
        subprocess.run([*self.podman, "start", "m"], check=True, capture_output=True)

    def up(self) -> bool:
        """Whether it runs at all."""
        argv = [*self.podman, "inspect", "--format", "{{.State.Running}}", "m"]
        return subprocess.run(argv, capture_output=True, text=True).stdout.strip() == "true"

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a command on it, as root."""
        done = subprocess.run([*self.podman, "exec", "m", *argv], capture_output=True, text=True)
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
        return subprocess.run([*self.podman, "exec", "m", *argv], capture_output=True, text=True).stdout

    def wait(self, what: Callable[[], Any], seconds: float = 120.0) -> Any:
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
        subprocess.run([*self.podman, "rm", "--force", "--time", "0", "m"], capture_output=True)
        self.doorbell.close()
        subprocess.run(["umount", f"{self.home}/pr/vfs"], capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture
def machine(system: Path, database: str, broker_url: str, engine: Engine) -> Iterator[Machine]:
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
    machine = Machine(system, home, environment, engine)
    yield machine
    machine.close()
