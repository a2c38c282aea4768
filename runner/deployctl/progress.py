"""Shows several stacks at work: one moving line each on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from runner.deployctl import output
from runner.deployctl.job import ENDED, StackEvent

_PLAIN_EVERY_SECONDS = 10.0
_MARKS = {
    "applied": "[green]✓[/]",
    "destroyed": "[green]✓[/]",
    "unchanged": "[dim]=[/]",
    "failed": "[red]✗[/]",
    "cancelled": "[yellow]■[/]",
    "drifted": "[yellow]≠[/]",
    "skipped": "[yellow]○[/]",
    "waiting": "[yellow]…[/]",
}


class Display:
    """A context manager that is also the `on_event` of job.prepare()."""

    def __init__(self, names: Sequence[str], console: Console | None = None) -> None:
        self._console = console or output.progress
        self._live = self._console.is_terminal
        self._names = list(names)
        self._width = max((len(n) for n in names), default=0)
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[str, float]] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[mark]}"),
            TextColumn("[bold]{task.description}", table_column=Column(min_width=self._width)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}", table_column=Column(min_width=7, justify="right")),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=self._console,
            refresh_per_second=8,
            expand=True,
        )

    def __enter__(self) -> Display:
        for name in self._names if self._live else ():
            self._tasks[name] = self._progress.add_task(
                name, start=False, total=None, mark=" ", now="[dim]waiting[/]", count=""
            )
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def __call__(self, event: StackEvent) -> None:
        """Take one event in."""
        if self._live:
            self._draw(event)
        else:
            self._say(event)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Get out of the way of a question."""
        if self._live:
            self._progress.stop()
        try:
            yield
        finally:
            if self._live:
                self._progress.start()

    def _draw(self, event: StackEvent) -> None:
        task = self._tasks[event.stack]
        if event.phase not in ENDED:
            self._progress.start_task(task)
        ended = event.phase in ENDED
        now = escape(describe(event, counted=False))
        if event.phase in ("plan", "init", "locked"):
            self._progress.update(task, now=f"[dim]{now}[/]")
        elif ended:
            known = self._progress.tasks[self._progress.task_ids.index(task)]
            total = known.total or 1
            good = event.phase in ("applied", "destroyed", "unchanged", "drifted")
            reached = total if good else min(known.completed, total - 1)
            self._progress.update(task, now=now, mark=_MARKS[event.phase], total=total, completed=reached)
            self._progress.stop_task(task)
        else:
            count = f"{event.done}/{event.total}" if event.total else ""
            self._progress.update(task, now=now, count=count, completed=event.done, total=event.total or None)

    def _say(self, event: StackEvent) -> None:
        phase, at = self._said.get(event.stack, ("", 0.0))
        now = time.monotonic()
        if event.phase == phase and now - at < _PLAIN_EVERY_SECONDS:
            return
        self._said[event.stack] = (event.phase, now)
        took = f" ({output.duration(event.seconds)})" if event.phase in ENDED and event.seconds >= 1 else ""
        self._console.print(f"{escape(event.stack):<{self._width}}  {escape(describe(event))}{took}")


def describe(event: StackEvent, *, counted: bool = True) -> str:
    """The event in a few words; `counted` says how far it is, where nothing else does. Pure."""
    match event.phase:
        case "init":
            return event.text
        case "locked":
            return f"waiting for the lock of {event.text}"
        case "drifted":
            return f"drifted: {event.text}"
        case "plan":
            return f"planning, {event.done} resources read" if event.done else event.text
        case "planned":
            return f"planned: {event.text}"
        case "apply":
            count = [f"{event.done} of {event.total} done"] if counted and event.done else []
            return ", ".join([*count, f"{event.text} {event.resource}"] if event.resource else count or ["applying"])
        case "applied" | "destroyed":
            return event.text
        case "unchanged":
            return "no changes"
        case "failed":
            return f"failed: {event.text}"
        case "cancelled":
            return "stopped"
        case "skipped":
            return "not started: another stack failed"
        case "waiting":
            return "planned once what it stands on is applied"
