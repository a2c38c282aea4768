"""`deployctl dags`: publish pipelines, look at versions, go back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer

from runner.bundle.compare import Changes
from runner.bundle.problem import BundleError
from runner.deployctl import client, output
from runner.deployctl.pipelines import Push
from runner.settings import UsageError
from runner.state.views import to_json

app = typer.Typer(no_args_is_help=True)

ENV = typer.Option(..., "--env", help="The environment.")
JSON = typer.Option(False, "--json", help="Print the result as JSON.")
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


@app.command("push")
def push(
    directory: Path = typer.Argument(..., help="The directory of pipelines; its name is the bundle's name."),
    env: str = ENV,
    dry_run: bool = typer.Option(False, "--dry-run", help="Check it and show what would change; change nothing."),
    arch: list[str] = typer.Option(
        [], "--arch", help="Machines of the fleet, for its packages: x86_64, aarch64; may be repeated."
    ),
    as_json: bool = JSON,
) -> None:
    """Check a directory of pipelines, upload it and make it the active version, in one transaction.

    New runs take it, runs under way keep theirs, and nothing restarts. A broken pipeline changes nothing.
    """
    from runner.bundle.collect import ARCHITECTURES

    wrong = [a for a in arch if a not in ARCHITECTURES]
    if wrong:
        raise UsageError(f"no architecture {wrong[0]!r}", f"one of {', '.join(ARCHITECTURES)}")
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory", "name the directory that holds the pipeline files")
    with client.connect(env) as c:
        try:
            if dry_run:
                done = c.pipelines().try_push(directory, architectures=arch)
            else:
                done = c.pipelines().push(directory, architectures=arch, who=client.who())
        except BundleError as e:
            if as_json:
                output.print_json({"problems": [p._asdict() for p in e.problems]})
            for problem in e.problems[1:]:
                output.note(f"  {problem}")
            raise
    if as_json:
        result = {
            "bundle": done.name,
            "version": done.version,
            "before": done.before,
            "size": done.size,
            "url": done.url,
            "dags": [s.dag_id for s in done.specs],
        }
        output.print_json(result if done.changes is None else {**result, "changes": to_json(done.changes)})
        return
    _tell(done)


def _tell(done: Push) -> None:
    names = ", ".join(s.dag_id for s in done.specs) or "no DAG"
    if done.before == done.version:
        output.note(f"{done.name} {done.version} is active already: {names}")
    elif done.changes is None:
        output.note(f"{done.name}: {done.before or 'nothing'} → {done.version}: {names}")
    else:
        output.note(f"{done.name}: {done.before or 'nothing'} → {done.version} would become active: {names}")
        _print(done.changes)


@app.command("list")
def list_(env: str = ENV, as_json: bool = JSON) -> None:
    """The DAGs of an environment and the version that new runs take."""
    with client.connect(env) as c:
        found = c.pipelines().dags()
    if as_json:
        output.print_json(to_json(found))
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


@app.command("show")
def show(
    what: str | None = typer.Argument(None, metavar="[BUNDLE|VERSION]", help="Of a bundle, its active version."),
    env: str = ENV,
    as_json: bool = JSON,
) -> None:
    """One version of a bundle: its DAGs, its packages, and the other versions there are."""
    with client.connect(env) as c:
        found = c.pipelines().show(what)
    row = found.bundle
    if as_json:
        dags = [s.to_json() for s in found.specs]
        versions = to_json(found.versions)
        output.print_json({**to_json(row), "specs": dags, "packages": found.packages, "versions": versions})
        return
    state = "active" if row.active else "not active"
    output.print_table(
        ("dag", "schedule", "?timezone", "#tasks"),
        ((s.dag_id, _value(s.schedule), s.timezone, len(s.tasks)) for s in found.specs),
        title=f"{row.name} {row.version}: {state}, pushed {_time(row)} by {row.created_by}, {row.size / 1000:.1f} kB",
    )
    if found.packages:
        output.results.print("packages: " + ", ".join(f"{n} {v}" for n, v in sorted(found.packages.items())))
    output.print_table(
        ("version", "pushed", "state", "#dags", "?by"),
        ((v.version, _time(v), "active" if v.active else "-", v.dags, v.created_by) for v in found.versions),
    )


@app.command("diff")
def diff(
    before: str | None = typer.Argument(None, metavar="[VERSION]", help="Without one: what the active one replaced."),
    after: str | None = typer.Argument(None, metavar="[VERSION]", help="Without one: the active one."),
    env: str = ENV,
    bundle: str | None = typer.Option(None, "--bundle", help="Whose versions, where there is more than one."),
    as_json: bool = JSON,
) -> None:
    """What differs between two versions: files, DAGs, tasks, schedules, packages."""
    with client.connect(env) as c:
        old, new, changes = c.pipelines().diff(before, after, bundle)
    if as_json:
        output.print_json({"before": old.version, "after": new.version, "changes": to_json(changes)})
        return
    output.note(f"{new.name}: {old.version} → {new.version}")
    _print(changes)


@app.command("history")
def history(
    bundle: str | None = typer.Argument(None, help="Of this bundle only."),
    env: str = ENV,
    limit: int = typer.Option(20, "--limit", min=1, help="How many, newest first."),
    as_json: bool = JSON,
) -> None:
    """Which version was made active when, by whom."""
    with client.connect(env) as c:
        found = c.pipelines().history(bundle, limit)
    if as_json:
        output.print_json(to_json(found))
        return
    output.print_table(
        ("at", "bundle", "action", "before", "after", "?by"),
        (
            (f"{d.at.astimezone():%Y-%m-%d %H:%M:%S}", d.bundle, d.action, d.before or "-", d.after or "-", d.who)
            for d in found
        ),
    )


@app.command("rollback")
def rollback(
    bundle: str | None = typer.Argument(None, help="Which bundle, where there is more than one."),
    env: str = ENV,
    to: str | None = typer.Option(None, "--to", help="The version; without it, what the active one replaced."),
    as_json: bool = JSON,
) -> None:
    """Make an earlier version active again: the same switch as a push, and as quick.

    New runs take it, runs under way keep theirs, and nothing restarts.
    """
    with client.connect(env) as c:
        name, before, after = c.pipelines().rollback(bundle, to, who=client.who())
    if as_json:
        output.print_json({"bundle": name, "before": before, "version": after})
    elif before == after:
        output.note(f"{name} {after} is active already")
    else:
        output.note(f"{name}: {before} → {after}")


def _print(changes: Changes) -> None:
    if not changes:
        output.note("nothing differs")
        return
    for line in lines(changes):
        output.results.print(output.escape(line), style=_COLOURS.get(line[:1], ""))


def lines(changes: Changes) -> Iterator[str]:
    """Changes as text: what happens to DAGs and packages first, the files after. Pure."""
    for name in changes.dags_added:
        yield f"DAG {name}: added"
    for name in changes.dags_removed:
        yield f"DAG {name}: removed, it gets no more runs"
    for dag in changes.dags_changed:
        for option, (old, new) in {**dag.schedule, **dag.options}.items():
            yield f"DAG {dag.dag_id}: {option} {_value(old)} → {_value(new)}"
        for word, tasks in (("added", dag.tasks_added), ("removed", dag.tasks_removed)):
            if tasks:
                yield f"DAG {dag.dag_id}: {word} {', '.join(tasks)}"
        for task, options in dag.tasks_changed.items():
            what = ", ".join(f"{option} {_value(old)} → {_value(new)}" for option, (old, new) in options.items())
            yield f"DAG {dag.dag_id}: task {task}: {what}"
    for package, (old, new) in changes.packages.items():
        yield f"package {package}: {old or 'none'} → {new or 'none'}"
    for file in changes.files:
        yield f"file {file.path}: {file.kind}"
        yield from file.diff.splitlines()


def _value(value: object) -> str:
    if isinstance(value, dict) and "text" in value:  # a timetable as data, with what people call it
        return str(value["text"])
    if isinstance(value, list):
        return "[" + ", ".join(map(str, value)) + "]"
    return "none" if value is None else str(value)


def _time(row: object) -> str:
    return f"{row.created_at.astimezone():%Y-%m-%d %H:%M:%S}"  # type: ignore[attr-defined]
