"""A shop of two hosts: each an SSH server of its own with two Celery workers of two processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import asyncssh
import boto3
import psutil
from celery import Celery

HERE = Path(__file__).parent
PATIENCE_SECONDS = 120.0


def until(what: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


class _Doorman(asyncssh.SSHServer):
    """Knows who is there, also who was not let in."""

    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connections.add(conn)


class SshServer:
    """An SSH server in a thread that runs what it is told as this user, with an environment of its own."""

    def __init__(self, key: Path, authorized: Path, env: dict[str, str]) -> None:
        self.port = 0
        self.commands: list[str] = []
        self._children: set[asyncio.subprocess.Process] = set()
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._key, self._authorized, self._env = key, authorized, env
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._over = asyncio.Event()
        server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[str(self._key)],
            authorized_client_keys=str(self._authorized),
            server_factory=lambda: _Doorman(self._connections),
            process_factory=self._run,
            encoding=None,
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await server.wait_closed()
        for child in self._children:  # what a client has given up waiting for
            child.kill()
        for connection in self._connections:
            connection.abort()
            await connection.wait_closed()
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=10)

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        assert process.command
        self.commands.append(process.command)
        child = await asyncio.create_subprocess_shell(
            process.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._env,
        )
        self._children.add(child)
        out, err = await child.communicate()
        self._children.discard(child)
        if process.is_closing():
            return
        process.stdout.write(out)
        process.stderr.write(err)
        process.exit(child.returncode or 0)


class Machine:
    """One host of the shop."""

    def __init__(self, name: str, home: Path, env: dict[str, str], key: Path, authorized: Path) -> None:
        self.name, self.home = name, home
        self.workers = ("a", "b")
        bin = home / "bin"
        bin.mkdir(parents=True)
        (bin / "hostname").write_text(f"#!/bin/sh\necho {name}\n")
        (bin / "hostname").chmod(0o755)
        self.version = home / "version"
        self.version.write_text("1")
        self.env = {
            **env,
            "PATH": f"{bin}:{HERE}:{os.environ['PATH']}",
            "SHOP_HOME": str(home),
            "SHOP_VERSION": str(self.version),
            "SHOP_WORKERS": " ".join(self.workers),
        }
        self.ssh = SshServer(key, authorized, self.env)

    @property
    def pids(self) -> list[int]:
        found = []
        for name in self.workers:
            with contextlib.suppress(FileNotFoundError, ValueError):
                found.append(int((self.home / f"{name}.pid").read_text()))
        return [p for p in found if psutil.pid_exists(p)]

    def unit(self, verb: str) -> None:
        subprocess.run([HERE / "unit", verb], env=self.env, check=True)

    def kill(self) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


class Shop:
    """The whole fleet, its file, its load and its ledger."""

    def __init__(self, root: Path, broker: str) -> None:
        self.root, self.broker = root, broker
        self.ledger = root / "ledger"
        self.ledger.touch()
        host_key, user_key = asyncssh.generate_private_key("ssh-ed25519"), asyncssh.generate_private_key("ssh-ed25519")
        self.key = root / "id"
        host_key.write_private_key(str(root / "host"))
        user_key.write_private_key(str(self.key))
        user_key.write_public_key(str(root / "authorized"))
        env = {
            "SHOP_BROKER": broker,
            "SHOP_LEDGER": str(self.ledger),
            "SHOP_PYTHON": sys.executable,
            "PYTHONPATH": str(HERE),
            "HOME": str(root),
        }
        self.machines = [Machine(n, root / n, env, root / "host", root / "authorized") for n in ("east", "west")]
        self.known_hosts = root / "known_hosts"
        public = host_key.export_public_key().decode().strip()
        self.known_hosts.write_text("".join(f"[127.0.0.1]:{m.ssh.port} {public}\n" for m in self.machines))
        self.file = root / "shop.yaml"
        self.state = root / "shop.roll.json"
        self.app = Celery("client", broker=broker, set_as_current=False)
        self.app.conf.task_ignore_result = True
        self.sent = 0
        self.describe()

    def host(self, index: int) -> str:
        return f"127.0.0.1:{self.machines[index].ssh.port}"

    def describe(self, *, update: str = 'echo {release} > "$SHOP_VERSION"', check: str = "", **options: object) -> None:
        """Write the fleet's file; `options` are those of the roll."""
        hosts = "\n".join(f"  - {{address: 127.0.0.1, port: {m.ssh.port}}}" for m in self.machines)
        given = "".join(f"  {k}: {v}\n" for k, v in {"back_timeout": "60s", **options}.items())
        checked = f"  check: {check}\n" if check else ""
        self.file.write_text(
            f"fleet: shop\nbroker:\n  url: {self.broker}\nhosts:\n{hosts}\n"
            f"workers: ['a@{{hostname}}', 'b@{{hostname}}']\n"
            f"ssh:\n  key: {self.key}\n  known_hosts: {self.known_hosts}\n"
            f"commands:\n  stop: unit stop\n  update: {update}\n  start: unit start\n{checked}roll:\n{given}"
        )

    def send(self, seconds: float, **options: object) -> int:
        self.sent += 1
        self.app.send_task("shop.work", (self.sent, seconds), **options)
        return self.sent

    def hold(self, count: int) -> None:
        """So many tasks that end with let_go(). More than half are under way, which is more than one of two hosts has
        slots for; a busy worker may have fetched the others."""
        for _ in range(count):
            self.sent += 1
            self.app.send_task("shop.hold", (self.sent,))
        until(lambda: len(self.lines("start")) > self.sent // 2)

    def let_go(self) -> None:
        self.ledger.with_name("go").touch()

    @contextlib.contextmanager
    def load(self, pause: float = 0.07) -> Iterator[None]:
        """Tasks of 0.05 to 1 s, some with a countdown, for as long as this lasts."""
        over = threading.Event()

        def produce() -> None:
            while not over.wait(pause):
                options = {"countdown": 3} if self.sent % 10 == 0 else {}
                self.send((0.05, 0.05, 0.1, 1.0)[self.sent % 4], **options)

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def lines(self, word: str) -> list[list[str]]:
        return [line.split() for line in self.ledger.read_text().splitlines() if line.startswith(word)]

    def count(self, word: str) -> Counter[int]:
        return Counter(int(line[1]) for line in self.lines(word))

    def check(self) -> set[str]:
        """Wait for all tasks, see that each ran once, from its beginning to its end, and that no host was stopped while
        it was at work; the versions that ran them."""
        until(lambda: len(self.count("end")) >= self.sent)
        once = Counter(range(1, self.sent + 1))
        assert self.count("start") == once and self.count("end") == once
        at_work: dict[str, set[str]] = {}
        for word, *rest in (line.split() for line in self.ledger.read_text().splitlines()):
            if word == "stop":
                assert not at_work.get(rest[0]), f"{rest[0]} was stopped at work: {at_work}"
            elif word == "start":
                at_work.setdefault(rest[2], set()).add(rest[0])
            else:
                at_work[rest[2]].discard(rest[0])
        return {line[2] for line in self.lines("end")}

    def answering(self) -> set[str]:
        return set(self.app.control.inspect(timeout=1.0).active_queues() or {})

    def consuming(self) -> set[str]:
        return {w for w, queues in (self.app.control.inspect(timeout=1.0).active_queues() or {}).items() if queues}

    def up(self) -> None:
        for machine in self.machines:
            machine.unit("start")
        until(lambda: len(self.consuming()) == 4)

    def stop(self) -> None:
        for machine in self.machines:
            machine.kill()

    def close(self) -> None:
        self.stop()
        for machine in self.machines:
            machine.ssh.stop()
        self.app.close()


class Group:
    """An autoscaling group in an emulated AWS; a thread gives each of its instances a worker, and takes it away with a
    KILL when the instance is terminated, as pulling the plug does."""

    name = "shop-workers"

    def __init__(self, shop: Shop, size: int) -> None:
        self.version = shop.root / "newest"
        self.version.write_text("1")
        self._env = {**shop.machines[0].env, "SHOP_VERSION": str(self.version)}
        self._asg: Any = boto3.client("autoscaling", "eu-west-1")
        self._ec2: Any = boto3.client("ec2", "eu-west-1")
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._play)
        self._ec2.create_launch_template(LaunchTemplateName="shop", LaunchTemplateData={"ImageId": "ami-12c6146b"})
        self._asg.create_auto_scaling_group(
            AutoScalingGroupName=self.name,
            MinSize=size,
            MaxSize=size + 1,
            DesiredCapacity=size,
            AvailabilityZones=["eu-west-1a"],
            LaunchTemplate={"LaunchTemplateName": "shop", "Version": "1"},
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for worker in self._workers.values():
            self._kill(worker)
        self._asg.delete_auto_scaling_group(AutoScalingGroupName=self.name, ForceDelete=True)
        self._ec2.delete_launch_template(LaunchTemplateName="shop")

    def members(self) -> list[str]:
        (found,) = self._asg.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"]
        return [i["InstanceId"] for i in found["Instances"]]

    def _play(self) -> None:
        while not self._over.wait(0.2):
            members = self.members()
            for instance in set(members) - set(self._workers):
                command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-n", f"w@{instance}", "-c", "2"]
                self._workers[instance] = subprocess.Popen(
                    [*command, "--without-gossip", "--without-mingle"],
                    env=self._env,
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            for instance in set(self._workers) - set(members):
                self._kill(self._workers[instance])

    @staticmethod
    def _kill(worker: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
