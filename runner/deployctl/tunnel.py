"""A way to an environment's database from outside its network: a local port, forwarded by one of its own nodes.

By Session Manager (document AWS-StartPortForwardingSessionToRemoteHost) or by `ssh -L`, as `deployctl fleet ssh` gets
to a node. It is there as long as the command that needs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from runner.deployctl import environment, output
from runner.deployctl.environment import Environment, NothingYetError
from runner.localcloud.engines import free_port
from runner.settings import SluiceError, UsageError

WAYS = ("ssm", "ssh")
VARIABLE = "SLUICE_VIA"  # one of WAYS, for all commands
_ROLES = ("scheduler", "web", "worker")  # whose nodes reach the database, those that stay longest first
_DIRECT_SECONDS = 2.0
_OPEN_SECONDS = 30.0
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Gate:
    """The node that forwards."""

    instance_id: str
    address: str
    role: str


def way(wished: str = "") -> str:
    """How a node is reached: as wished, else as SLUICE_VIA says, else by Session Manager where `aws` is installed.

    Raises UsageError for a word that is neither.
    """
    found = wished or os.environ.get(VARIABLE, "")
    if found and found not in WAYS:
        raise UsageError(f"{'--via' if wished else VARIABLE} {found!r} is no way", f"one of {', '.join(WAYS)}")
    return found or ("ssm" if shutil.which("aws") else "ssh")


def choose(reservations: Sequence[dict[str, Any]]) -> Gate | None:
    """The node to go through, of what DescribeInstances has found; None if there is none. Pure."""
    found = []
    for instance in (i for r in reservations for i in r["Instances"]):
        role = next((t["Value"] for t in instance.get("Tags", ()) if t["Key"] == "Role"), "")
        if role in _ROLES:
            found.append(Gate(instance["InstanceId"], instance.get("PrivateIpAddress", ""), role))
    return min(found, key=lambda g: (_ROLES.index(g.role), g.instance_id), default=None)


def command(by: str, gate: Gate, region: str, host: str, port: int, local_port: int) -> list[str]:
    """The command line that forwards 127.0.0.1:local_port to host:port as the node sees it. Pure."""
    if by == "ssh":
        forward = f"127.0.0.1:{local_port}:{host}:{port}"
        quietly = ["-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15"]
        return ["ssh", "-N", *quietly, "-L", forward, gate.address]
    wanted = {"host": [host], "portNumber": [str(port)], "localPortNumber": [str(local_port)]}
    document = ["--document-name", "AWS-StartPortForwardingSessionToRemoteHost", "--parameters", json.dumps(wanted)]
    return ["aws", "ssm", "start-session", "--region", region, "--target", gate.instance_id, *document]


def reachable(host: str, port: int) -> bool:
    """Whether somebody answers there, from here."""
    try:
        socket.create_connection((host, port), _DIRECT_SECONDS).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def opened(url: str, env: Environment, *, direct: Callable[[str, int], bool] = reachable) -> Iterator[str]:
    """The database's URL as it is reached from here: the same inside the network, else that of a local port.

    Raises NothingYetError if no node of the environment runs, SluiceError if the way through it does not open.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or 5432
    if direct(host, port):
        yield url
        return
    gate = choose(_running(env))
    if gate is None:
        raise NothingYetError(
            f"the database of {env.name} is not reached from here, and no node of it runs that could forward",
            f"`deployctl infra apply --env {env.name}` makes its nodes",
        )
    by, local_port = way(), free_port()
    with _process(by, command(by, gate, env.region, host, port, local_port), local_port):
        output.note(f"the database is reached through {gate.instance_id} ({gate.role}), by {by}")
        login = parts.netloc.rpartition("@")[0]
        here = f"127.0.0.1:{local_port}"
        yield urlunsplit(parts._replace(netloc=f"{login}@{here}" if login else here))


def _running(env: Environment) -> list[dict[str, Any]]:
    filters = [{"Name": "tag:Env", "Values": [env.name]}, {"Name": "instance-state-name", "Values": ["running"]}]
    pages = environment.client("ec2", env, os.environ).get_paginator("describe_instances").paginate(Filters=filters)
    return [reservation for page in pages for reservation in page["Reservations"]]


@contextlib.contextmanager
def _process(by: str, argv: Sequence[str], local_port: int) -> Iterator[None]:
    """The forwarder, listening; ended with all it has started. Ctrl-C does not reach it before us."""
    other = f"{VARIABLE}={next(w for w in WAYS if w != by)} takes the other way"
    if shutil.which(argv[0]) is None:
        raise SluiceError(f"the database is not reached from here, and {argv[0]} is not installed", other)
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + _OPEN_SECONDS
            while not reachable("127.0.0.1", local_port):
                if child.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    lines = said.read().decode(errors="replace").split("\n")
                    reason = next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
                    raise SluiceError(f"no way to the database: {argv[0]}: {reason}", other)
                time.sleep(0.1)
            yield
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
