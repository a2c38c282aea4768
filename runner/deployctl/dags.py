"""`deployctl dags`: publish pipelines, list what is active."""

from __future__ import annotations

from pathlib import Path

import typer

from runner.bundle.build import build
from runner.bundle.problem import BundleError
from runner.bundle.publish import publish
from runner.deployctl import client, output
from runner.settings import UsageError
from runner.state import bundles, queries

app = typer.Typer(no_args_is_help=True)


@app.command("push")
def push(
    directory: Path = typer.Argument(..., help="The directory of pipelines; its name is the bundle's name."),
    env: str = typer.Option(..., "--env", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Check a directory of pipelines, upload it and make it the active version, in one transaction.

    New runs take it, runs under way keep theirs, and nothing restarts. A broken pipeline changes nothing.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory", "name the directory that holds the pipeline files")
    directory = directory.resolve()
    with client.connect(env) as c, c.engine.begin() as connection:
        before = bundles.active_version(connection, build(directory).name)
        try:
            done = publish(directory, storage=c.artifacts(), connection=connection, who=client.who())
        except BundleError as e:
            for problem in e.problems[1:]:
                output.note(f"  {problem}")
            raise
    if as_json:
        result = {"bundle": done.name, "version": done.version, "before": before, "size": done.size, "url": done.url}
        output.print_json({**result, "dags": [s.dag_id for s in done.specs]})
        return
    names = ", ".join(s.dag_id for s in done.specs) or "no DAG"
    if before == done.version:
        output.note(f"{done.name} {done.version} is active already: {names}")
    else:
        output.note(f"{done.name}: {before or 'nothing'} → {done.version}: {names}")


@app.command("list")
def list_(
    env: str = typer.Option(..., "--env", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """The DAGs of an environment and the version that new runs take."""
    with client.connect(env) as c, c.engine.connect() as connection:
        found = queries.dags(connection)
    if as_json:
        output.print_json([queries.to_json(d) for d in found])
        return
    output.print_table(
        ("dag", "version", "schedule", "~state", "?#tasks", "?bundle"),
        (
            (
                d.dag_id,
                d.bundle_version[:12],
                d.schedule or "-",
                "paused" if d.paused else "active" if d.active else "not in its bundle any more",
                d.tasks,
                d.bundle,
            )
            for d in found
        ),
    )
