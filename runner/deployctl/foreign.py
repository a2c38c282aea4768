"""`deployctl roll --fleet FILE`: roll a Celery application that is not ours. Carried out from this terminal."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from runner.deployctl import client, output
from runner.deployctl.run import Cancel
from runner.settings import RefusedError, SluiceError, UsageError

if TYPE_CHECKING:
    from runner.rollout.celery_fleet.drive import Event, Roll
    from runner.rollout.celery_fleet.plan import Action, Step

_STYLE = {"running": "bold yellow", "done": "green", "failed": "bold red"}
NEWEST = "newest"  # of our own releases; a foreign fleet's have names of their own


class _Left(SluiceError):
    """Ctrl-C: the roll has stopped where it does no harm."""

    exit_code = 130


def roll(
    file: Path, release: str = "", *, only_plan: bool = False, yes: bool = False, abort: bool = False, as_json: bool
) -> None:
    """Roll the fleet that a file describes, or go on with a roll that was cut off; `abort` takes one back."""
    from runner.rollout.celery_fleet import journal as journals
    from runner.rollout.celery_fleet.hosts import HostsError
    from runner.rollout.celery_fleet.spec import SpecError, load

    try:
        spec = load(file)
    except SpecError as e:
        for problem in e.problems[1:]:
            output.note(f"  {problem}")
        raise
    release = "" if release == NEWEST else release
    with journals.alone(file) if not only_plan else contextlib.nullcontext():
        journal = journals.Journal(journals.journal_of(file))
        if abort and not journal.open:
            raise UsageError(f"no roll of {spec.fleet} is under way", "")
        if journal.open and release and release != journal.release:
            raise RefusedError(
                f"the roll of {spec.fleet} to {journal.release or 'what its update command brings'} is not over",
                "go on with it without --release, or take it back with --abort",
            )
        release = journal.release or release
        if spec.uses("release") and not release:
            raise UsageError(f"{file}: its commands use {{release}}", "say which: --release TEXT")
        try:
            _carry_out(file, release, only_plan=only_plan, yes=yes, abort=abort, as_json=as_json)
        except HostsError as e:
            _finish(e.results, as_json, e.failed)
            raise


def _carry_out(file: Path, release: str, *, only_plan: bool, yes: bool, abort: bool, as_json: bool) -> None:
    from runner.rollout.celery_fleet import hosts
    from runner.rollout.celery_fleet.drive import Roll
    from runner.rollout.celery_fleet.journal import Journal, journal_of
    from runner.rollout.celery_fleet.plan import plan
    from runner.rollout.celery_fleet.spec import load
    from runner.rollout.celery_fleet.ssh import Shell

    spec, journal = load(file), Journal(journal_of(file))
    shell = Shell(spec.ssh)
    targets = hosts.known(spec, shell, journal.hosts if journal.open else {})
    progress = _Progress(quiet=as_json)
    work = Roll(spec, targets, release, journal, shell=shell, on_event=progress)
    if abort:
        with progress:
            results = work.take_back()
        _finish(results, as_json)
        return
    left = work.left()
    steps = plan(spec, targets, release, left)
    if only_plan and as_json:
        output.print_json({"fleet": spec.fleet, "release": release or None, "steps": [vars(s) for s in steps]})
        return
    if not as_json or only_plan:
        if journal.open:
            output.note(f"goes on with the roll that {journal.by} began at {journal.began}")
        _show_plan(spec.fleet, release, steps)
    if only_plan:
        return
    number = sum(map(bool, left.values()))
    if not yes and not output.confirm(f"Roll {number} host{'s' * (number != 1)} of {spec.fleet}?"):
        raise typer.Abort
    journal.begin(release, client.who())
    with progress:
        results, interrupted = _run(work, left)
    _finish(results, as_json)
    if interrupted:
        raise _Left(f"stopped; the same command goes on, `deployctl roll --fleet {file} --abort` leaves it at that")


def _run(work: Roll, left: Mapping[str, Sequence[Action]]) -> tuple[dict[str, str], bool]:
    """Run in a thread, so that Ctrl-C is told to the roll and not to whatever it is in the middle of."""
    outcome: list[dict[str, str] | BaseException] = []

    def run() -> None:
        try:
            outcome.append(work.run(left))
        except BaseException as e:
            outcome.append(e)

    def said(first: bool) -> None:
        work.stop.set()
        output.note(
            "stopping: drains are called off, what is stopped is updated and started"
            if first
            else "already stopping; what is stopped has to be started first"
        )

    cancel = Cancel()
    thread = threading.Thread(target=run, name="roll")
    with cancel.on_signals(said):
        thread.start()
        thread.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found, cancel.wanted


# --- what is shown --------------------------------------------------------------------------------------------


def _show_plan(fleet: str, release: str, steps: Sequence[Step]) -> None:
    if not steps:
        output.note(f"nothing is left to do on {fleet}")
        return
    rows = []
    last: tuple[int, str] = (0, "")
    for s in steps:
        rows.append(
            (str(s.batch) if s.batch != last[0] else "", s.host if (s.batch, s.host) != last else "", s.action, s.text)
        )
        last = (s.batch, s.host)
    output.print_table(
        ("#batch", "host", "step", "~what"), rows, title=f"roll {fleet}" + (f" to {release}" if release else "")
    )


def _finish(results: Mapping[str, str], as_json: bool, failed: Mapping[str, SluiceError] | None = None) -> None:
    """Say how it went on each host."""
    from runner.rollout.celery_fleet.drive import CALLED_OFF, NOT_BEGUN

    failed = failed or {}
    said = {**results, **{host: error.message for host, error in failed.items()}}
    states = {h: "failed" if h in failed else "-" if r in (NOT_BEGUN, CALLED_OFF) else "ok" for h, r in said.items()}
    if as_json:
        output.print_json({"hosts": [{"host": h, "ok": states[h] == "ok", "result": r} for h, r in said.items()]})
    else:
        output.print_table(("host", "", "~result"), ((h, states[h], r) for h, r in said.items()))


class _Progress:
    """One line of a live table a host on a terminal, one line an event elsewhere. Called from many threads."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[Event, dt.datetime]] = {}
        live = output.progress.is_terminal and not quiet
        self._live = Live(console=output.progress, refresh_per_second=4, get_renderable=self._table) if live else None

    def __enter__(self) -> _Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        now = dt.datetime.now(dt.UTC)
        with self._lock:
            self._rows[event.host] = (event, now)
            if self._live is None and not self._quiet:
                what = f": {event.text}" if event.text else ""
                output.note(f"{now.astimezone():%H:%M:%S} {event.host} {event.action}: {event.state}{what}")

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=False)
        for name in ("host", "step", "state", "text"):
            table.add_column(name, overflow="fold", no_wrap=name != "text")
        with self._lock:
            rows = list(self._rows.items())
        # Those at work stay in view; of the others only how many there are.
        done = Counter(e.state for _, (e, _) in rows)
        room = max(3, output.progress.height - 3)
        shown = rows if len(rows) <= room else [r for r in rows if r[1][0].state != "done"][-room:]
        for host, (event, _) in shown:
            table.add_row(escape(host), event.action, f"[{_STYLE[event.state]}]{event.state}[/]", escape(event.text))
        if len(shown) < len(rows):
            table.add_row(f"[dim]and {done['done']} that wait or are over[/]")
        return table
