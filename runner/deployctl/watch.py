"""Watching rollouts: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection, text

from runner.deployctl import output
from runner.deployctl.client import Client
from runner.rollout.plan import Step
from runner.state import rollouts
from runner.state.rollouts import DRIVER_SECONDS
from runner.state.views import RolloutRow, StepRow

_STYLE = {"pending": "dim", "running": "bold yellow", "done": "green", "failed": "bold red"}
_EVENTS = text("""
SELECT id, at, kind, subject, state, detail FROM event
WHERE id > :after AND (kind = 'rollout' AND subject = ANY (:ids) OR kind = 'node') ORDER BY id LIMIT 500
""")


def watch(
    roll_id: int | None = typer.Argument(None, metavar="[ROLL]", help="Which roll; without it, all that run."),
    env: str = typer.Option(..., "--env", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Print how they ended as JSON, once they have."),
) -> None:
    """Watch rolls until they end. Leaving changes nothing; exit status 1 unless all succeeded."""
    from runner.deployctl import client, follow

    with client.connect(env) as c:
        follow.follow(c, follow.under_way(c, roll_id), drive=False, as_json=as_json)


class Watch:
    """Shows these rollouts until they end; look() once every half second. `quiet` shows nothing."""

    def __init__(self, client: Client, ids: Sequence[int], *, quiet: bool = False) -> None:
        self.client = client
        self.ids = list(ids)
        self.quiet = quiet
        self.live = Live(console=output.progress, auto_refresh=False) if _is_terminal() and not quiet else None
        self._after = -1
        self._said_alone = False

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self) -> bool:
        """Show what is new. False once all have ended."""
        with self.client.engine.connect() as c:
            found = [(rollouts.get(c, i), rollouts.steps(c, i)) for i in self.ids]
            lines = [] if self.quiet or self.live is not None else self._news(c)
        if self.live is not None:
            # A live display taller than the terminal loses its end, which is where the work is.
            tall = sum(2 * len(s) + 2 for _, s in found) > output.progress.height
            self.live.update(Group(*(_table(r, s, short=tall) for r, s in found)), refresh=True)
        for line in lines:
            output.note(line)
        self._alone([r for r, _ in found])
        return any(r.state == "running" for r, _ in found)

    def _news(self, c: Connection) -> list[str]:
        if self._after < 0:
            # From the beginning of the first of them, so that a second watcher sees the whole story.
            first = text("SELECT coalesce(min(id), 1) - 1 FROM event WHERE kind = 'rollout' AND subject = ANY (:ids)")
            self._after = int(c.execute(first, {"ids": [str(i) for i in self.ids]}).scalar_one())
        rows = c.execute(_EVENTS, {"after": self._after, "ids": [str(i) for i in self.ids]}).all()
        self._after = rows[-1].id if rows else self._after
        return [line(row) for row in rows]

    def _alone(self, found: Sequence[RolloutRow]) -> None:
        """Say once that nobody carries a rollout on."""
        alone = [
            r
            for r in found
            if r.state == "running" and (r.driver is None or (r.driver_age or 0.0) > 2 * DRIVER_SECONDS)
        ]
        old = [r for r in alone if (r.driver_age or _age(r)) > 2 * DRIVER_SECONDS]
        if old and not self._said_alone and not self.quiet:
            self._said_alone = True
            output.note(
                f"nobody has carried roll {old[0].id} on for {2 * DRIVER_SECONDS:.0f} s: is a scheduler alive? "
                f"`deployctl roll --env {self.client.env} --resume {old[0].id}` does it from here"
            )


def window(states: Sequence[str]) -> range:
    """Which steps to show where there is no room for all: the first that is not done, and those beside it. Pure."""
    at = next((i for i, state in enumerate(states) if state != "done"), len(states))
    return range(max(0, at - 1), min(len(states), at + 2))


def summary(step: StepRow) -> str:
    """How far a step is, in a few words."""
    d: dict[str, Any] = step.detail
    if "trouble" in d:
        return f"trying again: {d['trouble']}"
    if step.action == "wait_ready":
        return "; ".join(f"{i}: {how}" for i, how in d.get("seen", {}).items())
    if step.action == "heartbeat":
        return ", ".join(f"{n}: {s}" for n, s in d.get("states", {}).items())
    if step.action == "drain" and step.state == "running":
        left = ", ".join(f"{i}: {n} task{'s' * (n != 1)} left" for i, n in d.get("left", {}).items())
        return f"past its deadline, waits: {left}" if d.get("late") else left
    if step.action == "bake" and "new" in d:
        (bad, ended), (old_bad, old_ended) = d["new"], d["old"]
        return f"{bad} of {ended} tasks failed on new nodes, {old_bad} of {old_ended} on old ones"
    if step.action == "schema" and d.get("left"):
        return f"left for later: {len(d['left'])} nodes run other releases"
    if step.action in ("terminate", "retreat") and step.state == "running":
        return f"waiting for {', '.join(d['left'])}" if d.get("left") else ""
    return "past its deadline" if d.get("forced") else ""


def _table(rollout: RolloutRow, steps: Sequence[StepRow], *, short: bool) -> Table:
    short = short and rollout.state == "running"
    shown = window([s.state for s in steps]) if short else range(len(steps))
    title = f"roll {rollout.id}: {rollout.pool} to {rollout.release}: {rollout.state}"
    title += f", driven by {rollout.driver}" if rollout.driver else ""
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for name in ("", "step", "", "s", ""):
        table.add_column(name, justify="right" if name == "s" else "left", overflow="fold")
    if shown.start:
        table.add_row("", f"[dim]{shown.start} steps done[/]")
    for s in steps[shown.start : shown.stop]:
        seconds = ""
        if s.started_at is not None:
            seconds = f"{((s.ended_at - s.started_at).total_seconds() if s.ended_at else s.age or 0):.1f}"
        what = escape(Step(s.action, s.args).text())
        table.add_row(str(s.seq), what, f"[{_STYLE[s.state]}]{s.state}[/]", seconds, escape(summary(s)))
    if shown.stop < len(steps):
        table.add_row("", f"[dim]{len(steps) - shown.stop} more to come[/]")
    if rollout.error:
        table.caption = f"[bold red]{escape(rollout.error)}[/]"
    return table


def line(event: Any) -> str:
    """An event of a node or a rollout, as a log shows it."""
    at = f"{event.at.astimezone():%H:%M:%S}"
    if event.kind == "node":
        return f"{at} node {event.subject}: {event.state}" + (f" ({event.detail})" if event.detail else "")
    what = event.detail if event.state == "step" else f"{event.state}: {event.detail}"
    return f"{at} roll {event.subject}: {what}"


def _age(rollout: RolloutRow) -> float:
    import datetime as dt

    return (dt.datetime.now(dt.UTC) - rollout.created_at).total_seconds()


def _is_terminal() -> bool:
    return output.progress.is_terminal
