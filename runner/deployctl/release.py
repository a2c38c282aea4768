"""`deployctl release`: build what nodes run, publish it, list what is there."""

from __future__ import annotations

from pathlib import Path

import typer

from runner.deployctl import client, output
from runner.rollout import release as releases
from runner.rollout.wheels import Target
from runner.state import rollouts

app = typer.Typer(no_args_is_help=True)


@app.command("build")
def build(
    env: str = typer.Option("", "--env", help="Publish it to this environment; without it, only build."),
    label: str = typer.Option("", "--label", help="A word for people; part of the release's identity."),
    root: Path = typer.Option(Path(), "--root", help="The source tree.", show_default="this directory"),
    out: Path | None = typer.Option(None, "--out", help="Where the archive goes.", show_default="<root>/dist/releases"),
    platform: str = typer.Option("linux_x86_64", "--platform", help="What nodes are: linux_x86_64 or linux_aarch64."),
    python: list[str] = typer.Option(["3.11"], "--python", help="Their Python; may be given several times."),
    extra: list[str] = typer.Option(list(releases.EXTRAS), "--extra", help="Extras of ours that they run."),
    no_wheels: bool = typer.Option(False, "--no-wheels", help="For process nodes of a local cloud alone: our wheel."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Build a release from the source tree, and publish it if an environment is named.

    The same tree with the same label gives the same id and the same bytes.
    """
    targets = [] if no_wheels else [Target(version, platform) for version in python]

    def make() -> releases.BuiltRelease:
        return releases.build(root, label, out, targets=targets, extras=extra)

    if not env:
        built, published = make(), None
    else:
        with client.connect(env) as c:
            built = make()
            with c.engine.begin() as connection:
                published = releases.publish(built, c.artifacts(), connection, client.who())
    size = built.path.stat().st_size
    if as_json:
        output.print_json(
            {"id": built.id, "label": label, "path": built.path, "size": size, "env": env or None, "new": published}
        )
        return
    output.note(f"release {built.id}{f' ({label})' if label else ''}, {size / 1e6:.1f} MB: {built.path}")
    if published is not None:
        output.note(f"published to {env}" if published else f"was published to {env} before")
    output.results.print(built.id)


@app.command("list")
def list_(
    env: str = typer.Option(..., "--env", help="The environment."),
    limit: int = typer.Option(20, "--limit", min=1, help="How many, newest first."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """The releases of an environment, newest first, and how many nodes run each."""
    from runner.state import queries

    with client.connect(env) as c, c.engine.connect() as connection:
        found = rollouts.releases(connection, limit)
        nodes = [n.release for n in queries.fleet(connection)]
    if as_json:
        output.print_json([{**vars(r), "nodes": nodes.count(r.id)} for r in found])
        return
    if not found:
        output.note(f"no release in {env} yet: `deployctl release build --env {env}` publishes one")
        return
    output.print_table(
        ("release", "~label", "built", "#nodes", "?by", "?commit", "?#MB"),
        (
            (
                r.id,
                r.label,
                f"{r.created_at.astimezone():%Y-%m-%d %H:%M:%S}",
                nodes.count(r.id),
                r.created_by,
                r.git_commit[:10] + ("+" if r.git_commit.endswith("+") else ""),
                f"{r.size / 1e6:.1f}",
            )
            for r in found
        ),
    )
