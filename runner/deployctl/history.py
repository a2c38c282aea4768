"""`deployctl history`: pipeline code, releases and infrastructure in one list."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import typer
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import OperationalError

from runner.deployctl import client, environment, ledger, output
from runner.settings import SluiceError, UsageError
from runner.state import history as state
from runner.state.history import Change, Tasks

KINDS = ("code", "release", "infra")
_USUAL = {"code": "push", "release": "roll", "infra": "apply"}  # goes without saying
_SHORT = 8  # of an id that nobody has to type: `rollback` takes the number of the line


def history(
    env: str = typer.Option(..., "--env", help="The environment."),
    kind: str = typer.Option("", "--kind", help="Only code, release or infra."),
    limit: int = typer.Option(20, "--limit", min=1, help="How many, newest first."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """What was changed in an environment: who, what, when, from where to where, and what became of the tasks.

    tasks: those that ran meanwhile where it was changed. lost: began, never ended, and run nowhere.
    """
    if kind and kind not in KINDS:
        raise UsageError(f"no kind {kind!r}", f"one of {', '.join(KINDS)}")
    found = changes(env, kind, limit)
    if as_json:
        output.print_json([_json(c) for c in found])
        return
    if not found:
        output.note(f"nothing was changed in {env} yet")
        return
    output.print_table(
        ("id", "at", "what", "~from → to", "?state", "?#lost", "?#tasks", "?#took", "?by", "?#handed on"),
        (row(c) for c in found),
    )


def changes(env: str, kind: str = "", limit: int = 20) -> list[Change]:
    """The newest changes of all kinds. What cannot be reached is left out, and said: database or state bucket.

    Raises the error of the database if only what it knows was asked for.
    """
    found: list[Change] = []
    infra: list[ledger.Entry] = []
    if kind in ("", "infra"):
        try:
            known = environment.load(env)
            infra = ledger.read(known, environment.process_environ(known), limit)
        except (BotoCoreError, ClientError) as e:
            if kind:
                raise
            output.note(f"without infrastructure, whose history is in the state bucket: {' '.join(str(e).split())}")
    try:
        with client.connect(env) as c, c.engine.connect() as connection:
            if kind in ("", "code"):
                found += state.code(connection, limit)
            if kind in ("", "release"):
                found += state.rolls(connection, limit)
            found += [_of(e, state.tasks_between(connection, _began(e), e.ended)) for e in infra]
    except (SluiceError, OperationalError) as e:
        if kind in ("code", "release") or not infra:
            raise
        why = e.message if isinstance(e, SluiceError) else "the database does not answer"
        output.note(f"without code, releases and tasks: {why}")
        found = [_of(e) for e in infra]
    return sorted(found, key=lambda c: c.at, reverse=True)[:limit]


def row(c: Change) -> tuple[str, ...]:
    """A change as a line of the table. Pure."""
    took = "" if c.seconds is None else output.duration(c.seconds) if c.seconds else "at once"
    return (
        c.id,
        f"{c.at.astimezone():%m-%d %H:%M}",
        c.target if c.action == _USUAL[c.kind] else f"{c.action} {c.target}",
        arrow(c),
        "" if c.state == "succeeded" else c.state,
        "" if c.tasks is None else str(c.tasks.lost),
        "" if c.tasks is None else str(c.tasks.in_flight),
        took,
        c.who,
        str(c.tasks.handed_on) if c.tasks and c.tasks.handed_on else "",
    )


def arrow(c: Change) -> str:
    """From where to where. Pure."""
    if c.kind == "infra":
        return c.after or ""
    return f"{(c.before or 'nothing')[:_SHORT]} → {(c.after or 'nothing')[:_SHORT]}"


def _json(c: Change) -> dict[str, Any]:
    return dataclasses.asdict(c)


def _began(e: ledger.Entry) -> dt.datetime:
    return e.ended - dt.timedelta(seconds=e.seconds)


def _of(e: ledger.Entry, tasks: Tasks | None = None) -> Change:
    done = {"applied": "succeeded", "destroyed": "succeeded", "unchanged": "succeeded"}
    after = e.changes + (f" at {e.commit[:7]}{'' if e.clean else '+'}" if e.commit else "")
    return Change(
        e.id, "infra", e.action, e.stack, None, after, e.who, _began(e), e.seconds, done.get(e.status, e.status), tasks
    )
