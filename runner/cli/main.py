"""`runner`: the processes of a node, and what an author or an operator asks them."""

from __future__ import annotations

import datetime as dt
import getpass
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from runner.deployctl import output
from runner.deployctl.main import guarded, leave
from runner.settings import Settings, SluiceError, UsageError, load
from runner.state.views import to_json

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Run and look at data pipelines."
)
db = typer.Typer(no_args_is_help=True, help="The metadata database.")
dag = typer.Typer(no_args_is_help=True, help="DAGs.")
run = typer.Typer(no_args_is_help=True, help="Runs of DAGs.")
task = typer.Typer(no_args_is_help=True, help="Task instances.")
config = typer.Typer(no_args_is_help=True, help="The configuration in force.")
asset = typer.Typer(no_args_is_help=True, help="Assets: what tasks update and DAGs wait for.")
_groups = {"asset": asset, "db": db, "dag": dag, "run": run, "task": task, "config": config}
for name, group in _groups.items():
    app.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"runner {importlib.metadata.version('sluice')}")
        raise typer.Exit


@app.callback()
def top(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Its version."),
) -> None:
    """Run and look at data pipelines."""


LOG_SECONDS = 2.0  # after its end, a task's last lines are in the store within this time

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point: exit status 0 done, 1 failed, 2 bad usage or configuration, 3 refused, 130 interrupted."""
    leave(guarded(app, sys.argv[1:], "runner"))


# --- processes ------------------------------------------------------------------------------------------------


def _service(role: str) -> Settings:
    from runner.telemetry import logs

    settings = load()
    logs.configure(settings.log_level, role=role, node=settings.node_id)
    return settings


@app.command()
def scheduler() -> None:
    """Create runs, dispatch, hand on what was lost, drive rollouts. Run two or more: all are active."""
    from runner.scheduler import main as process

    raise typer.Exit(process.run(_service("scheduler")))


@app.command()
def worker() -> None:
    """Take tasks from this node's queues and run them. TERM: finish what runs, then exit."""
    from runner.worker import main as process

    raise typer.Exit(process.run(_service("worker")))


@app.command()
def agent() -> None:
    """Start this node's services and answer for it: drains, lifecycle hooks, spot notices."""
    from runner.agent import main as process

    raise typer.Exit(process.run(_service("agent")))


@app.command()
def web() -> None:
    """Serve the REST API and the pages."""
    from runner.web import main as process

    raise typer.Exit(process.run(_service("web")))


@app.command()
def flower() -> None:
    """Serve Flower, a look into the broker; its options come as FLOWER_*."""
    from runner.telemetry import flower as process

    raise typer.Exit(process.run(_service("flower")))


@app.command()
def install(
    release: Annotated[str, typer.Argument(help="The release's id.")],
) -> None:
    """Fetch a release onto this node and install it beside the others; as root. The agent does it for an order."""
    from runner.agent import install as process

    process.run(_service("install"), release)


@app.command()
def dev(
    pipelines: Annotated[Path, typer.Argument(help="The folder of pipelines to watch.")],
    port: Annotated[int, typer.Option(help="Port of the web pages; 0 picks one.")] = 8080,
    slots: Annotated[int, typer.Option(min=1, help="Tasks that run at once.")] = 4,
) -> None:
    """Run everything on this machine and publish the folder again whenever a file in it changes."""
    from runner.localcloud import dev as environment

    raise typer.Exit(environment.run(pipelines, port=port, slots=slots))


# --- database -------------------------------------------------------------------------------------------------


def _settings() -> Settings:
    """The settings of somebody who asks, not of a process: says how to get them where nothing is set."""
    settings = load()
    if not settings.database_url:
        raise UsageError(
            "SLUICE_DATABASE_URL is not set",
            'of the local cloud: eval "$(deployctl local env)"; of `runner dev`: the line it prints',
        )
    return settings


@contextmanager
def _database() -> Iterator[Any]:
    from runner.state.db import connect

    engine = connect(_settings().database())
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


@db.command("upgrade")
def db_upgrade(
    phase: Annotated[
        Literal["pre", "post", "all"],
        typer.Option(help="pre: before the first new node; post: after the last old one."),
    ] = "all",
) -> None:
    """Bring the schema up to date."""
    from runner.state import migrate

    migrate.upgrade(_settings().database(), phase)
    output.note("the schema is up to date")


# --- DAGs and runs --------------------------------------------------------------------------------------------


@dag.command("list")
def dag_list(as_json: Json = False) -> None:
    """All DAGs, with their schedule and last runs."""
    from runner.state import queries

    with _database() as connection:
        rows = queries.dags(connection, limit=10_000)
    if as_json:
        output.print_json(to_json(rows))
        return
    output.print_table(
        ["dag", "schedule", "next run", "last runs", "?version", "?bundle"],
        [
            (
                r.dag_id + (" (paused)" if r.paused else ""),
                r.schedule or "-",
                _time(r.next_run_at),
                " ".join(x.state for x in r.recent[:3]) or "-",
                r.bundle_version,
                r.bundle,
            )
            for r in rows
        ],
    )


@dag.command("trigger")
def dag_trigger(
    dag_id: str,
    logical_date: Annotated[str | None, typer.Option(help="ISO 8601 with a zone; now if it is left out.")] = None,
    params: Annotated[str, typer.Option(help="JSON object for the run.")] = "{}",
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, JSON or text; again for more.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the run's end; exit 1 if it fails.")] = False,
    as_json: Json = False,
) -> None:
    """Start a run by hand."""
    from runner.state import params as run_params
    from runner.state import transitions

    date = _parse_date(logical_date)
    values = _parse_params(params) | dict(_parse_param(p) for p in param or ())
    with _database() as connection:
        _known_dag(connection, dag_id)
        run_params.check(connection, dag_id, values)
        run_id = transitions.create_run(connection, dag_id, date, params=values)
    if run_id is None:
        raise UsageError(f"DAG {dag_id} has a run of {date.isoformat()} already", "choose another --logical-date")
    if as_json:
        output.print_json({"run_id": run_id, "dag_id": dag_id, "logical_date": date})
    else:
        output.note(f"run {run_id} of {dag_id} is under way: runner run show {run_id}")
    if wait:
        state = _wait(run_id)
        output.note(f"run {run_id}: {state}")
        raise typer.Exit(0 if state == "success" else 1)


@dag.command("test")
def dag_test(
    dag_id: str,
    directory: Annotated[Path, typer.Option("--dir", help="The directory of pipelines.")] = Path(),
    date: Annotated[str | None, typer.Option("--date", help="ISO 8601 with a zone; now if it is left out.")] = None,
    params: Annotated[str, typer.Option(help="JSON object for the run.")] = "{}",
    storage_url: Annotated[str, typer.Option("--storage", help="Where its files go: file:///… or s3://…")] = "",
    as_json: Json = False,
) -> None:
    """Run one DAG in this process, without any service: each task's state and value, exit 1 if one fails."""
    from runner.bundle import dag_test as here

    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory", "--dir names the one that holds the pipeline files")
    when, values = _parse_date(date, "--date"), _parse_params(params)
    here.under_its_python(directory)
    ended: dict[str, Any] = {}

    def end(task_id: str, state: str, value: Any) -> None:
        ended[task_id] = {"state": state, "value": str(value) if state == "failed" else value}
        if not as_json:
            shown = "" if value is None else repr(value) if state == "failed" else json.dumps(value)
            output.results.print(f"{state:8} {task_id}  {output.escape(shown)}".rstrip())

    try:
        with redirect_stdout(sys.stderr) if as_json else nullcontext():  # what tasks print is no result
            here.run_dag(directory, dag_id, when, values, storage_url, end)
    finally:
        if as_json and ended:
            output.print_json(ended)


@run.command("list")
def run_list(
    dag_id: Annotated[str | None, typer.Option("--dag", help="Of this DAG only.")] = None,
    state: Annotated[str | None, typer.Option(help="running, success or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    as_json: Json = False,
) -> None:
    """The newest runs."""
    from runner.state import queries
    from runner.state.models import RUN_STATES

    if state is not None and state not in RUN_STATES:
        raise UsageError(f"no run state {state!r}", f"one of {', '.join(RUN_STATES)}")
    with _database() as connection:
        if dag_id is not None:
            _known_dag(connection, dag_id)
        rows = queries.runs(connection, dag_id, state, limit=limit)
    if as_json:
        output.print_json(to_json(rows))
        return
    output.print_table(
        ["#run", "dag", "state", "logical date", "?#unfinished", "?took", "?type", "?started"],
        [
            (r.id, r.dag_id, r.state, _time(r.logical_date), r.unfinished, _took(r), r.run_type, _time(r.created_at))
            for r in rows
        ],
    )


@run.command("show")
def run_show(run_id: int, as_json: Json = False) -> None:
    """One run with its task instances."""
    from runner.state import queries

    with _database() as connection:
        found = queries.run(connection, run_id)
    if found is None:
        raise UsageError(f"no run {run_id}", "`runner run list` shows what there is")
    if as_json:
        output.print_json(to_json(found))
        return
    output.print_table(
        ["#id", "task", "state", "#attempt", "?~error", "?node", "?started"],
        [
            (t.id, t.task_id, t.state, t.attempt, t.error or "", t.node_id or "-", _time(t.started_at))
            for t in found.task_instances
        ],
        title=f"run {found.id} of {found.dag_id}: {found.state}",
    )


TaskNames = Annotated[list[str] | None, typer.Argument(help="Tasks of the run; `load[2]` is one item of a mapped one.")]


@run.command("clear")
def run_clear(
    run_id: int,
    tasks: TaskNames = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only what has failed.")] = False,
    upstream: Annotated[bool, typer.Option("--upstream", help="Also everything before the tasks.")] = False,
    downstream: Annotated[bool, typer.Option(help="Also everything after the tasks.")] = True,
) -> None:
    """Run tasks of a run again, all of it without names. What runs is ended first."""
    from runner.state import transitions

    with _database() as connection:
        n = transitions.clear(
            connection, run_id, tasks, only_failed=failed, upstream=upstream, downstream=downstream, by=_who()
        )
    output.note(f"run {run_id}: {n} task instances run again" if n else f"run {run_id}: nothing to run again")


@run.command("mark")
def run_mark(run_id: int, state: Literal["success", "failed", "skipped"], tasks: TaskNames = None) -> None:
    """Say what tasks have become, whatever they have done."""
    from runner.state import transitions

    if not tasks:
        raise UsageError("which tasks?", f"e.g. runner run mark {run_id} {state} load; `runner run show {run_id}`")
    with _database() as connection:
        n = transitions.mark(connection, run_id, tasks, state, by=_who())
    output.note(f"run {run_id}: {n} task instances marked {state}")


@run.command("kill")
def run_kill(run_id: int, tasks: TaskNames = None) -> None:
    """End tasks, or the whole run: they stop within a heartbeat and have failed."""
    from runner.state import transitions

    by = _who()
    with _database() as connection:
        if tasks:
            n = transitions.mark(connection, run_id, tasks, "failed", by=by, only_unfinished=True)
        else:
            n = transitions.end_run(connection, run_id, why=f"killed by {by}")
    output.note(f"run {run_id}: {n} task instances are being ended")


@task.command("logs")
def task_logs(
    task_instance: Annotated[int, typer.Argument(help="Id from `runner run show`.")],
    attempt: Annotated[int | None, typer.Option(min=1, help="The last one if it is left out.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task ends.")] = False,
) -> None:
    """What a task printed, also while it runs."""
    from runner.state import queries
    from runner.state.models import FINISHED
    from runner.storage import Storage
    from runner.storage.logs import log_prefix, read_log

    settings = _settings()
    settings.require("storage_url")
    storage = Storage.open(settings.storage_url)
    number, part, watched, waited = attempt, 0, False, 0.0
    while True:
        with _database() as connection:
            found = queries.task_instance(connection, task_instance)
        if found is None:
            raise UsageError(f"no task instance {task_instance}", "`runner run show RUN` lists them")
        number = found.attempt if number is None else number
        if number > found.attempt:
            raise UsageError(f"task instance {task_instance} has no attempt {number}", f"its last is {found.attempt}")
        # Looked at before the log, so no line is missed.
        another = number < found.attempt
        over = another or found.state in FINISHED or (attempt is not None and found.state in ("ready", "up_for_retry"))
        text, part = read_log(
            storage, log_prefix(found.dag_id, found.run_id, found.task_id, number, found.map_index), part
        )
        sys.stdout.write(text)
        sys.stdout.flush()
        if text:
            continue
        if over and (watched or _seconds_since(found.ended_at) < LOG_SECONDS) and waited < LOG_SECONDS:
            waited += 0.25  # its last lines may still be on their way
        elif another and attempt is None:
            number, part, waited = number + 1, 0, 0.0
            continue
        elif over or not follow:
            return
        else:
            watched = True
        time.sleep(0.25)


@asset.command("list")
def asset_list(as_json: Json = False) -> None:
    """All assets, with the DAGs that update and use them."""
    from runner.state import assets

    with _database() as connection:
        rows = assets.known(connection)
    if as_json:
        output.print_json(to_json(rows))
        return
    output.print_table(
        ["asset", "last update", "?~made by", "?~used by"],
        [(r.asset, _time(r.updated_at), " ".join(r.made_by) or "-", " ".join(r.used_by) or "-") for r in rows],
    )


@asset.command("update")
def asset_update(
    name: str,
    extra: Annotated[str, typer.Option(help="JSON object that the runs get to see.")] = "{}",
) -> None:
    """Say that something outside has updated an asset."""
    from runner.state import assets

    values = _parse_params(extra, "--extra")
    with _database() as connection:
        n = assets.update(connection, name, extra=values, who=getpass.getuser())
    output.note(f"{name} updated; {n} DAG{'' if n == 1 else 's'} wait{'s' if n == 1 else ''} for it")


@config.command("show")
def config_show(as_json: Json = False) -> None:
    """Every setting in force, passwords masked."""
    settings = load()
    values = settings.masked()
    if as_json:
        output.print_json(values)
        return
    fields = type(settings).model_fields
    output.print_table(
        ["variable", "value", "?~meaning"],
        [(f"SLUICE_{k.upper()}", v, fields[k].description or "") for k, v in values.items()],
    )


# --- helpers --------------------------------------------------------------------------------------------------


def _who() -> str:
    return getpass.getuser()


def _known_dag(connection: Any, dag_id: str) -> None:
    from runner.state import queries

    if queries.dag(connection, dag_id) is None:
        known = [d.dag_id for d in queries.dags(connection, limit=20)]
        raise UsageError(f"no DAG {dag_id!r}", f"known: {', '.join(known) or 'none; `deployctl dags push DIR`'}")


def _wait(run_id: int) -> str:
    from runner.state import queries
    from runner.state.db import connect

    engine = connect(_settings().database())
    try:
        while True:
            with engine.begin() as connection:
                found = queries.run(connection, run_id, limit=1)
            if found is None:
                raise SluiceError(f"run {run_id} is gone")
            if found.state not in ("queued", "running"):
                return str(found.state)
            time.sleep(0.2)
    finally:
        engine.dispose()


def _parse_date(text: str | None, option: str = "--logical-date") -> dt.datetime:
    if text is None:
        return dt.datetime.now(dt.UTC)
    try:
        date = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is no ISO 8601 time", "e.g. 2026-01-31T06:00+00:00") from None
    if date.tzinfo is None:
        raise UsageError(f"{option} {text!r} has no time zone", f"e.g. {date.isoformat(timespec='minutes')}+00:00")
    return date


def _parse_params(text: str, option: str = "--params") -> dict[str, Any]:
    example = f"""e.g. {option} '{{"day": "2026-01-31"}}'"""
    try:
        values = json.loads(text)
    except ValueError as e:
        raise UsageError(f"{option} is no JSON: {e}", example) from None
    if not isinstance(values, dict):
        raise UsageError(f"{option} must be a JSON object", example)
    return values


def _parse_param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"-p {text!r} is not NAME=VALUE", "e.g. -p day=2026-01-31 -p n=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _time(value: dt.datetime | None) -> str:
    return value.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ") if value else "-"


def _seconds_since(value: dt.datetime | None) -> float:
    return (dt.datetime.now(dt.UTC) - value).total_seconds() if value else float("inf")


def _took(row: Any) -> str:
    return output.duration((row.ended_at - row.created_at).total_seconds()) if row.ended_at else "-"
