"""`deployctl fleet`: what runs where; take a node out and put it back."""

from __future__ import annotations

import datetime as dt

import typer

from runner.deployctl import client, output, reach, replay, scaling
from runner.settings import RefusedError, UsageError
from runner.state import nodes, queries

app = typer.Typer(no_args_is_help=True)
app.command("scale")(scaling.scale)
app.command("ssh")(reach.ssh)
app.command("logs")(reach.logs)
replay.register(app)


@app.command("status")
def status(
    env: str = typer.Option(..., "--env", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Every node: what it is, what it runs, and when it was last heard."""
    with client.connect(env) as c, c.engine.connect() as connection:
        found = queries.fleet(connection)
    if as_json:
        output.print_json([queries.to_json(n) for n in found])
        return
    if not found:
        output.note(f"{env} has no nodes yet")
        return
    now = dt.datetime.now(dt.UTC)
    output.print_table(
        ("node", "role", "pool", "state", "release", "#tasks", "?~why", "?#heard", "?#slots", "?age"),
        (
            (
                n.node_id,
                n.role,
                n.pool,
                n.state if n.live or n.state == "drained" else f"{n.state}, silent",
                n.release,
                n.running,
                why(n),
                "never" if n.heartbeat_age_seconds is None else f"{n.heartbeat_age_seconds:.1f} s ago",
                n.slots or "",
                output.duration((now - n.registered_at).total_seconds()),
            )
            for n in found
        ),
    )


@app.command("drain")
def drain(
    node: str = typer.Argument(..., help="The node's id."),
    env: str = typer.Option(..., "--env", help="The environment."),
    reason: str = typer.Option(..., "--reason", help="Why; it is shown with the node."),
    deadline: int = typer.Option(0, "--deadline", min=0, help="Seconds its tasks get; 0: as configured."),
) -> None:
    """Let a node take no more tasks; when its own have ended, its service is stopped."""
    with client.connect(env) as c, c.engine.begin() as connection:
        seconds = float(deadline or c.settings.drain_seconds)
        if nodes.cordon(connection, node, reason=reason, by=client.who(), deadline_seconds=seconds):
            view = _known(queries.node(connection, node), node, env)
            output.note(f"{node} drains: {view.running} tasks have {output.duration(seconds)} to end")
            return
        view = _known(queries.node(connection, node), node, env)
        output.note(f"{node} is {view.state} already ({view.reason or 'no reason given'})")


@app.command("undrain")
def undrain(
    node: str = typer.Argument(..., help="The node's id."),
    env: str = typer.Option(..., "--env", help="The environment."),
) -> None:
    """Call a drain off: the node takes tasks again."""
    with client.connect(env) as c, c.engine.begin() as connection:
        if nodes.uncordon(connection, node, by=client.who()):
            output.note(f"{node} takes tasks again")
            return
        view = _known(queries.node(connection, node), node, env)
        if view.state == "drained":
            raise RefusedError(f"{node} is drained and its service stopped", "terminate it; its group brings another")
        output.note(f"{node} does not drain: it is {view.state}")


def why(node: queries.NodeRow) -> str:
    """Why a node drains, who wants it, and how long its tasks have. Pure."""
    if node.state not in ("draining", "drained") or not node.reason:
        return ""
    said = f"{node.reason}, by {node.requested_by}"
    if node.state == "draining" and node.seconds_left is not None:
        left = f"{output.duration(node.seconds_left)} left" if node.seconds_left > 0 else "past its deadline"
        said += f"; {left}"
    return said


def _known(view: queries.NodeRow | None, node: str, env: str) -> queries.NodeRow:
    if view is None or view.state == "gone":
        raise UsageError(
            f"{env} has no node {node!r}" + (" any more" if view else ""),
            f"`deployctl fleet status --env {env}` shows those it has",
        )
    return view
