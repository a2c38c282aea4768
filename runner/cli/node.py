"""`runner node`: what a machine says of itself that no service of it can say."""

from __future__ import annotations

import typer

from runner.cli.main import _database, _settings, app
from runner.state import nodes

node = typer.Typer(no_args_is_help=True, hidden=True, help="This machine.")
app.add_typer(node, name="node")


@node.callback()
def _group() -> None:
    """This machine."""


@node.command("failed")
def failed(reason: str) -> None:
    """Record that this machine's boot has failed. Its node never registers, so it takes no work."""
    settings = _settings()
    settings.require("node_id")
    with _database() as connection:
        nodes.boot_failed(connection, settings.node_id, reason)
