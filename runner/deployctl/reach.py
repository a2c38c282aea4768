"""`deployctl fleet ssh | logs`: onto a node, and what it says. What is run is shown first."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from runner.deployctl import client, output, tunnel
from runner.deployctl.client import Client
from runner.localcloud import containers
from runner.localcloud import state as localcloud
from runner.settings import SluiceError, UsageError
from runner.state import queries
from runner.state.views import NodeRow

_UNITS = "runner-*"

NODE = typer.Argument(..., help="The node's id.")
ENV = typer.Option(..., "--env", help="The environment.")
VIA = typer.Option("", "--via", help="ssm or ssh.", show_default="ssm, where `aws` is installed")


def ssh(
    node: str = NODE,
    command: list[str] = typer.Argument(None, metavar="[COMMAND]...", help="Instead of a shell."),
    env: str = ENV,
    via: str = VIA,
) -> None:
    """Open a shell on a node: over Session Manager or SSH; in the local cloud, in the node's own directory."""
    with client.connect(env) as c:
        row = _find(c, node)
        if env == localcloud.ENV:
            home = _home(row)
            if inside := _container(row, terminal=not command):
                _become([*inside, *(command or ["bash", "--login"])])
            extra = {"SLUICE_HOME": str(home), "SLUICE_NODE_ID": row.node_id, "SLUICE_POOL": row.pool}
            shell = os.environ.get("SHELL") or "/bin/sh"
            _become(list(command) if command else [shell], cwd=home, env={**os.environ, **extra})
        argv = shell_on(row, c.settings.region, tunnel.way(via), command or ())
    _become(argv)


def logs(
    node: str = NODE,
    env: str = ENV,
    follow: bool = typer.Option(False, "-f", "--follow", help="Go on as it grows."),
    lines: int = typer.Option(100, "-n", "--lines", min=0, help="How many of the last lines."),
    via: str = VIA,
) -> None:
    """Show what a node's services have said: its journal, or in the local cloud its log files."""
    with client.connect(env) as c:
        row = _find(c, node)
        journal = [
            "journalctl",
            "--unit",
            _UNITS,
            "--lines",
            str(lines),
            "--no-pager",
            *(["--follow"] if follow else []),
        ]
        if env == localcloud.ENV:
            home = _home(row)
            if inside := _container(row, terminal=False):
                _become([*inside, *journal])
            files = [
                p for p in (home / "console.log", home / "agent.log", *sorted(home.glob("log/*.log"))) if p.exists()
            ]
            if not files:
                raise SluiceError(f"{row.node_id} has said nothing yet", f"look into {home}")
            _become(tail(files, lines, follow))
        argv = shell_on(row, c.settings.region, tunnel.way(via), ["sudo", *journal])
    _become(argv)


def shell_on(node: NodeRow, region: str, way: str, command: Sequence[str]) -> list[str]:
    """The command line that reaches a node of AWS. Raises SluiceError for a node that cannot be reached so. Pure."""
    if node.state == "gone":
        raise SluiceError(
            f"{node.node_id} is gone, its machine is terminated", "its logs are in CloudWatch, if it sent them"
        )
    if way == "ssh":
        if not node.address:
            raise SluiceError(f"{node.node_id} has told no address", "--via ssm needs none")
        return ["ssh", node.address, *(["--", shlex.join(command)] if command else [])]
    if not node.instance_id.startswith("i-"):
        raise SluiceError(f"{node.node_id} is no EC2 instance", "--via ssh")
    argv = ["aws", "ssm", "start-session", "--region", region, "--target", node.instance_id]
    if command:
        argv += [
            "--document-name",
            "AWS-StartInteractiveCommand",
            "--parameters",
            f"command={json.dumps([shlex.join(command)])}",
        ]
    return argv


def tail(files: Sequence[Path], lines: int, follow: bool) -> list[str]:
    """The command line that shows the ends of these files. Pure."""
    return ["tail", "-n", str(lines), *(["-F"] if follow else []), *map(str, files)]


def _find(c: Client, node: str) -> NodeRow:
    with c.engine.connect() as connection:
        row = queries.node(connection, node)
    if row is None:
        raise UsageError(f"{c.env} has no node {node!r}", f"`deployctl fleet status --env {c.env}` shows those it has")
    return row


def _home(node: NodeRow) -> Path:
    home = localcloud.directory() / "nodes" / (node.instance_id or node.node_id)
    if not home.is_dir():
        raise SluiceError(f"{node.node_id} has no directory on this machine", f"{home} is not there")
    return home


def _container(node: NodeRow, *, terminal: bool) -> list[str]:
    """What runs a command in the node's container; empty where the local cloud's nodes are processes."""
    if localcloud.load().nodes != "containers":
        return []
    engine = containers.find()
    running = engine.containers(localcloud.directory())
    name = next((n for n in running if n.endswith(f"-{node.instance_id}")), None)
    if name is None:
        raise SluiceError(f"the container of {node.node_id} is not there any more", f"its files are in {_home(node)}")
    return [*engine.command, "exec", *(["--interactive", "--tty"] if terminal else []), name]


def _become(argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Show a command line and become it: its terminal, its signals and its exit status are ours."""
    output.note(f"$ {f'cd {shlex.quote(str(cwd))} && ' if cwd else ''}{shlex.join(argv)}")
    if shutil.which(argv[0]) is None:
        raise SluiceError(f"{argv[0]} is not installed on this machine", "--via names the other way")
    sys.stdout.flush()
    sys.stderr.flush()
    if cwd is not None:
        os.chdir(cwd)
    os.execvpe(argv[0], list(argv), dict(env or os.environ))
