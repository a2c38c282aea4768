"""An environment reached from outside its network: a real `ssh`, a stand-in for Session Manager, a real database."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncssh
import boto3
import psutil
import pytest

from runner.deployctl import environment, tunnel
from runner.deployctl.tunnel import Gate
from runner.rollout.release import archive_key
from runner.settings import SluiceError, UsageError
from tests.rollout import tiny as tiny_release

Run = Callable[..., tuple[int, str, str]]
GATE = Gate("i-0123456789abcdef0", "10.1.2.3", "scheduler")
HIDDEN = "db.abc.us-east-1.rds.invalid"  # nobody but the node knows this name


# --- the pure part --------------------------------------------------------------------------------------------


def test_session_manager_is_asked_as_its_document_wants_it() -> None:
    argv = tunnel.command("ssm", GATE, "eu-west-1", HIDDEN, 5432, 40001)
    assert argv[:7] == ["aws", "ssm", "start-session", "--region", "eu-west-1", "--target", GATE.instance_id]
    assert argv[7:10] == ["--document-name", "AWS-StartPortForwardingSessionToRemoteHost", "--parameters"]
    assert json.loads(argv[10]) == {"host": [HIDDEN], "portNumber": ["5432"], "localPortNumber": ["40001"]}


def test_the_node_that_stays_longest_is_chosen() -> None:
    def instance(id: str, role: str) -> dict[str, Any]:
        return {"InstanceId": id, "PrivateIpAddress": "10.0.0.1", "Tags": [{"Key": "Role", "Value": role}]}

    found = [{"Instances": [instance("i-1", "worker"), instance("i-2", "monitoring")]}]
    assert tunnel.choose(found) == Gate("i-1", "10.0.0.1", "worker")
    found += [{"Instances": [instance("i-9", "scheduler"), instance("i-8", "web"), instance("i-7", "scheduler")]}]
    assert tunnel.choose(found) == Gate("i-7", "10.0.0.1", "scheduler")
    assert tunnel.choose([{"Instances": [{"InstanceId": "i-3"}]}]) is None


def test_the_way_is_wished_or_named_or_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tunnel.way() == "ssh"
    (tmp_path / "aws").touch(0o755)
    assert tunnel.way() == "ssm"
    monkeypatch.setenv(tunnel.VARIABLE, "ssh")
    assert (tunnel.way(), tunnel.way("ssm")) == ("ssh", "ssm")
    monkeypatch.setenv(tunnel.VARIABLE, "pigeon")
    with pytest.raises(UsageError, match="SLUICE_VIA 'pigeon' is no way"):
        tunnel.way()


# --- an environment that has been applied ---------------------------------------------------------------------


class Node(asyncssh.SSHServer):
    """A node's SSH server, which knows where the database is."""

    database = ""
    connections: set[asyncssh.SSHServerConnection] = set()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self.connections.add(conn)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        if dest_host != HIDDEN:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, f"no such host: {dest_host}")
        return self._connection.forward_unix_connection(type(self).database)


class Server:
    """It, in a thread."""

    def __init__(self, folder: Path, database: str) -> None:
        self._loop, self._ready = asyncio.new_event_loop(), threading.Event()
        Node.database = database
        self.key, self.host_key = folder / "id", folder / "host"
        for path in (self.key, self.host_key):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(str(path))
            key.write_public_key(f"{path}.pub")
            path.chmod(0o600)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        keys = {"server_host_keys": [str(self.host_key)], "authorized_client_keys": f"{self.key}.pub"}
        server = await asyncssh.listen("127.0.0.1", 0, server_factory=Node, **keys)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        await server.wait_closed()
        for connection in Node.connections:
            connection.abort()
            await connection.wait_closed()
        Node.connections.clear()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on the search path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def database(database_url: str) -> str:
    """The socket of the test's PostgreSQL."""
    where = parse_qs(urlsplit(database_url).query)
    return f"{where['host'][0]}/.s.PGSQL.{where['port'][0]}"


@pytest.fixture
def node(tmp_path: Path, programs: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A node that `ssh 10.1.2.3` leads to, as an operator's own configuration would say it; skips without ssh."""
    real = shutil.which("ssh")
    if real is None:
        pytest.skip("no ssh on PATH")
    server = Server(tmp_path, database)
    (tmp_path / "known").write_text(f"[127.0.0.1]:{server.port} {Path(f'{server.host_key}.pub').read_text()}")
    (tmp_path / "config").write_text(
        f"Host 10.1.2.3\n  HostName 127.0.0.1\n  Port {server.port}\n  User {getpass.getuser()}\n"
        f"  IdentityFile {server.key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {tmp_path / 'known'}\n"
    )
    script(programs / "ssh", f'#!/bin/sh\nexec {real} -F {tmp_path / "config"} "$@"\n')
    monkeypatch.setenv(tunnel.VARIABLE, "ssh")
    yield server
    server.close()


@pytest.fixture
def applied(
    tree: Path, aws_environ: None, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bool], str]]:
    """An environment whose data stack is applied. Called with whether a node of it runs; returns the database's URL."""
    before = dict(os.environ)
    where = environment.load("tiny")
    environment.create_state_bucket(where, os.environ)
    s3, ec2 = environment.client("s3", where, os.environ), environment.client("ec2", where, os.environ)
    artifacts = f"sluice-tiny-artifacts-{where.account_id}"
    s3.create_bucket(Bucket=artifacts)
    login = urlsplit(database_url)
    secrets = environment.client("secretsmanager", where, os.environ)
    secret = json.dumps({"username": login.username, "password": login.password or "any"})
    arn = secrets.create_secret(Name=f"database-{os.getpid()}-{time.monotonic_ns()}", SecretString=secret)["ARN"]
    url = f"postgresql://{HIDDEN}:5432{login.path}"
    outputs = {"database_url": {"value": url}, "database_secret_arn": {"value": arn}}
    s3.put_object(Bucket=where.state_bucket, Key="tiny/data.tfstate", Body=json.dumps({"outputs": outputs}))
    started: list[str] = []

    def run(running: bool) -> str:
        if running:
            tags = [{"Key": "Env", "Value": "tiny"}, {"Key": "Role", "Value": "scheduler"}]
            launched = ec2.run_instances(
                ImageId="ami-12c6146b",
                MinCount=1,
                MaxCount=1,
                PrivateIpAddress="10.1.2.3",
                TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
            )
            started.append(launched["Instances"][0]["InstanceId"])
        return url

    yield run
    if started:
        ec2.terminate_instances(InstanceIds=started)
    bucket = boto3.resource("s3", region_name="us-east-1").Bucket(artifacts)
    bucket.objects.delete()
    bucket.delete()
    os.environ.clear()
    os.environ.update(before)


def forwarders() -> list[str]:
    """Command lines of this process's children that forward."""
    return [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True) if "10.1.2.3" in p.cmdline()]


def test_a_command_from_outside_goes_through_a_node_by_ssh(
    applied: Callable[[bool], str], node: Server, deployctl: Run
) -> None:
    # Given an environment whose database only its nodes can reach
    applied(True)
    # When an operator asks from outside
    code, out, err = deployctl("fleet", "status", "--env", "tiny", "--json")
    # Then there is an answer from the database, it is said which way was taken, and nothing is left of that way
    assert code == 0, err
    assert json.loads(out) == []
    assert "the database is reached through i-" in err and "(scheduler), by ssh" in err
    assert forwarders() == []


def test_what_ssh_says_is_the_reason(
    applied: Callable[[bool], str], node: Server, tmp_path: Path, deployctl: Run
) -> None:
    applied(True)
    (tmp_path / "known").write_text("")
    code, _, err = deployctl("fleet", "status", "--env", "tiny")
    assert code == 1
    assert "no way to the database: ssh: Host key verification failed." in err
    assert "SLUICE_VIA=ssm takes the other way" in err


# It does what `aws ssm start-session` does with this document: it listens on the local port, and the node connects.
_AWS = """#!{python}
import asyncio, json, signal, sys

words = sys.argv[1:]
if words[:2] != ["ssm", "start-session"]:
    sys.exit("aws: error: argument command: Invalid choice")
option = dict(zip(words[2::2], words[3::2]))
wanted = json.loads(option["--parameters"])
if option["--document-name"] != "AWS-StartPortForwardingSessionToRemoteHost" or wanted["host"] != ["{hidden}"]:
    sys.exit("An error occurred (InvalidDocument) when calling the StartSession operation")
if {refuse!r}:
    sys.exit("An error occurred (TargetNotConnected) when calling the StartSession operation: i-1 is not connected.")


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(reader, writer):
    other_reader, other_writer = await asyncio.open_unix_connection("{database}")
    await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer), return_exceptions=True)


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(wanted["localPortNumber"][0]))
    print("Starting session with SessionId: operator-0\\nPort", wanted["localPortNumber"][0], "opened for sessionId")
    await server.serve_forever()


asyncio.run(main())
"""


def test_a_command_from_outside_goes_through_a_node_by_session_manager(
    applied: Callable[[bool], str], programs: Path, database: str, deployctl: Run
) -> None:
    applied(True)
    script(programs / "aws", _AWS.format(python=sys.executable, hidden=HIDDEN, database=database, refuse=False))
    code, out, err = deployctl("fleet", "status", "--env", "tiny", "--json")
    assert code == 0, err
    assert json.loads(out) == [] and "(scheduler), by ssm" in err
    # And what it refuses is said as it says it
    script(programs / "aws", _AWS.format(python=sys.executable, hidden=HIDDEN, database=database, refuse=True))
    code, _, err = deployctl("fleet", "status", "--env", "tiny")
    assert code == 1 and "aws: An error occurred (TargetNotConnected)" in err


def test_inside_the_network_there_is_no_way_round(database_url: str, tree: Path) -> None:
    with tunnel.opened(database_url, environment.load("tiny"), direct=lambda host, port: True) as url:
        assert url == database_url
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        assert not tunnel.reachable("127.0.0.1", port)
        s.listen()
        assert tunnel.reachable("127.0.0.1", port)


def test_a_forwarder_that_says_nothing_is_given_up(tree: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    monkeypatch.setattr(tunnel, "_OPEN_SECONDS", 0.3)
    monkeypatch.setattr(tunnel, "_running", lambda env: [{"Instances": [_instance()]}])
    monkeypatch.setenv(tunnel.VARIABLE, "ssm")
    script(programs / "aws", "#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    with (
        pytest.raises(SluiceError, match="no way to the database: aws: it says nothing"),
        tunnel.opened(f"postgresql://{HIDDEN}/x", environment.load("tiny")),
    ):
        pass
    assert time.monotonic() - began < 10
    assert not [p for p in psutil.Process().children(recursive=True) if "sleep" in p.name()]


def test_ctrl_c_leaves_no_forwarder(tree: Path, monkeypatch: pytest.MonkeyPatch, programs: Path, database: str) -> None:
    monkeypatch.setattr(tunnel, "_running", lambda env: [{"Instances": [_instance()]}])
    monkeypatch.setenv(tunnel.VARIABLE, "ssm")
    script(programs / "aws", _AWS.format(python=sys.executable, hidden=HIDDEN, database=database, refuse=False))

    def running() -> bool:
        return any("start-session" in p.cmdline() for p in psutil.Process().children(recursive=True))

    with (
        pytest.raises(KeyboardInterrupt),
        tunnel.opened(f"postgresql://{HIDDEN}/x", environment.load("tiny")) as url,
    ):
        assert running() and url.startswith("postgresql://127.0.0.1:")
        raise KeyboardInterrupt
    assert not running()


def _instance() -> dict[str, Any]:
    return {"InstanceId": "i-1", "PrivateIpAddress": "10.1.2.3", "Tags": [{"Key": "Role", "Value": "web"}]}


# --- before there is anything ---------------------------------------------------------------------------------


def test_an_environment_without_a_database_says_how_to_get_one(tree: Path, aws_environ: None, deployctl: Run) -> None:
    before = dict(os.environ)
    code, _, err = deployctl("fleet", "status", "--env", "tiny")
    os.environ.clear()
    os.environ.update(before)
    assert code == 2
    assert "tiny has no database yet" in err and "deployctl infra apply --env tiny --stack data" in err


def test_the_first_release_waits_in_the_artifacts(
    applied: Callable[[bool], str], tmp_path: Path, deployctl: Run
) -> None:
    # Given an environment with a database and no node
    applied(False)
    root = tiny_release.tree(tmp_path / "source")
    # When a release is built for it
    words = ("release", "build", "--root", root, "--no-wheels", "--env", "tiny")
    code, out, err = deployctl(*words)
    # Then it is there for the first nodes, and what is missing is said
    assert code == 0, err
    bucket = boto3.resource("s3", region_name="us-east-1").Bucket(
        f"sluice-tiny-artifacts-{environment.load('tiny').account_id}"
    )
    assert archive_key(out.strip()) in [o.key for o in bucket.objects.all()]
    assert "uploaded, but not written down: tiny has no database to answer" in err
    # And what needs the database says why there is no way to it
    code, _, err = deployctl("release", "list", "--env", "tiny")
    assert code == 1 and "no node of it runs that could forward" in err
