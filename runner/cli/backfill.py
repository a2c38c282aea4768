"""`runner backfill` and `runner backfills`: run a DAG for a span of past instants."""

from __future__ import annotations

import datetime as dt
import time
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer

from runner.cli.main import Json, _database, _time, _who, app
from runner.deployctl import output
from runner.settings import UsageError
from runner.state.views import to_json

backfills = typer.Typer(no_args_is_help=True, help="Backfills under way and over.")
app.add_typer(backfills, name="backfills")


@app.command("backfill")
def backfill(
    dag_id: str,
    start: Annotated[str, typer.Option("--from", help="First instant: a date in the DAG's zone, or ISO 8601.")],
    end: Annotated[str, typer.Option("--to", help="Last instant, included; of a date its whole day.")],
    missing: Annotated[bool, typer.Option("--missing", help="Instants without a run (the default).")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Those, and runs that failed.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every instant, also where a run succeeded.")] = False,
    max_active: Annotated[int, typer.Option(min=1, help="Runs at once; its DAG's own limit holds too.")] = 16,
    reverse: Annotated[bool, typer.Option("--reverse", help="Newest first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what it would do, and do nothing.")] = False,
    tasks: Annotated[str | None, typer.Option(help="Only tasks that match, e.g. 'load*'.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show progress until it is over; exit 1 if a run fails.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a DAG for past instants: what is missing, what failed, or all. Low priority, within every limit."""
    from runner.scheduler import backfill as plans

    if missing + failed + everything > 1:
        raise UsageError("choose one of --missing, --failed and --all")
    which: plans.Which = "all" if everything else "failed" if failed else "missing"
    with _database() as connection:
        zone = _zone(connection, dag_id)
        wish = plans.Wish(
            dag_id,
            _instant(start, zone, "--from", last=False),
            _instant(end, zone, "--to", last=True),
            which,
            max_active,
            reverse,
            tasks,
        )
        planned = plans.plan(connection, wish)
        number = None if dry_run else plans.start(connection, wish, planned, by=_who())
    if as_json:
        output.print_json({"backfill": number, **to_json(planned)})
    else:
        _say(planned, number, dry_run=dry_run)
    if wait and number is not None:
        raise typer.Exit(_watch(number))


def _say(planned: Any, number: int | None, *, dry_run: bool) -> None:
    n, again = len(planned.instants), sum(i.again for i in planned.instants)
    kept = f", {planned.left} left as they are" if planned.left else ""
    if dry_run and n:
        rows = [
            (_time(i.logical_date), _time(i.start), _time(i.end), "again" if i.again else "new")
            for i in (planned.instants if n <= 20 else [*planned.instants[:10], *planned.instants[-10:]])
        ]
        output.print_table(["logical date", "interval from", "to", "run"], rows, title=f"{n} runs{kept}")
        if n > 20:
            output.note(f"the first and the last ten of {n}")
    elif number is None:
        output.note(f"nothing to run{kept}")
    else:
        output.note(f"backfill {number}: {n} runs, {again} of them again{kept}: runner backfills show {number}")


@backfills.command("list")
def backfills_list(
    dag_id: Annotated[str | None, typer.Option("--dag", help="Of this DAG only.")] = None, as_json: Json = False
) -> None:
    """The newest backfills."""
    from runner.state import backfills as state

    with _database() as connection:
        rows = state.recent(connection, dag_id)
    if as_json:
        output.print_json(to_json(rows))
        return
    output.print_table(
        ["#backfill", "dag", "state", "#waiting", "#active", "#success", "#failed", "?from", "?to", "?by"],
        [
            (
                r.id,
                r.dag_id,
                r.state,
                r.waiting,
                r.active,
                r.success,
                r.failed,
                _time(r.first),
                _time(r.last),
                r.created_by,
            )
            for r in rows
        ],
    )


@backfills.command("show")
def backfills_show(
    number: int,
    wait: Annotated[bool, typer.Option("--wait", help="Until it is over; exit 1 if a run failed.")] = False,
    as_json: Json = False,
) -> None:
    """How far a backfill is."""
    from runner.state import backfills as state

    if wait:
        raise typer.Exit(_watch(number))
    with _database() as connection:
        found = state.get(connection, number)
    if as_json:
        output.print_json(to_json(found))
    else:
        output.note(_progress(found))


@backfills.command("pause")
def backfills_pause(number: int) -> None:
    """Start no more runs; those under way go on."""
    _switch(number, "paused")


@backfills.command("resume")
def backfills_resume(number: int) -> None:
    """Go on with a paused one."""
    _switch(number, "running")


@backfills.command("cancel")
def backfills_cancel(
    number: int, kill: Annotated[bool, typer.Option("--kill", help="Also end the runs under way.")] = False
) -> None:
    """Start no more runs, for good."""
    _switch(number, "cancelled", kill=kill)


def _switch(number: int, to: str, *, kill: bool = False) -> None:
    from runner.state import backfills as state

    with _database() as connection:
        found = state.switch(connection, number, to, by=_who(), kill=kill)
    output.note(_progress(found))


def _progress(row: Any) -> str:
    return (
        f"backfill {row.id} of {row.dag_id}: {row.state}; {row.success + row.failed} of {row.total} runs over, "
        f"{row.failed} failed, {row.active} active, {row.waiting} waiting"
    )


def _watch(number: int) -> int:
    from runner.state import backfills as state

    said = ""
    while True:
        with _database() as connection:
            found = state.get(connection, number)
        if (line := _progress(found)) != said:
            output.note(line)
            said = line
        if found.state in ("done", "cancelled"):
            return 1 if found.failed else 0
        time.sleep(1.0)


def _zone(connection: Any, dag_id: str) -> ZoneInfo:
    from runner.state import queries

    found = queries.dag(connection, dag_id)
    if found is None:
        known = [d.dag_id for d in queries.dags(connection, limit=20)]
        raise UsageError(f"no DAG {dag_id!r}", f"known: {', '.join(known) or 'none'}")
    return ZoneInfo(found.timezone)


def _instant(text: str, zone: ZoneInfo, option: str, *, last: bool) -> dt.datetime:
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is neither a date nor a time", "e.g. 2026-01-31") from None
    if len(text) <= 10 and last:
        at = at + dt.timedelta(days=1) - dt.timedelta(microseconds=1)
    return (at if at.tzinfo else at.replace(tzinfo=zone)).astimezone(dt.UTC)
