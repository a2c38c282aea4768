"""What `deployctl local` shows: the steps while a local cloud comes up, and its daemons and nodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from runner.deployctl import output
from runner.deployctl.job import ENDED, StackEvent
from runner.deployctl.progress import describe
from runner.localcloud import node, process
from runner.localcloud.state import LocalState
from runner.state.queries import NodeRow

_FAILED = ("failed", "cancelled", "skipped")


@dataclass(frozen=True)
class Step:
    """One thing that happens while a local cloud comes up or goes down, for whoever shows it."""

    name: str
    text: str
    done: bool = False
    failed: bool = False
    seconds: float = 0.0  # since it began


OnStep = Callable[[Step], None]


def step_of(event: StackEvent) -> Step:
    """A Terraform stack's progress as a step. Pure."""
    failed = event.phase in _FAILED
    return Step(f"{event.stack} stack", describe(event), event.phase in ENDED and not failed, failed, event.seconds)


class Say:
    """Reports on one step, with the seconds since it began; what is said last counts as its end."""

    def __init__(self, name: str, on_step: OnStep) -> None:
        self._name = name
        self._on_step = on_step
        self._began = time.monotonic()

    def __call__(self, text: str, *, done: bool = True, failed: bool = False) -> None:
        self._on_step(Step(self._name, text, done and not failed, failed, time.monotonic() - self._began))


class Display:
    """A context manager that is also an on_step: one live line per step on a terminal, plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or output.progress
        self._lock = threading.Lock()
        self._steps: dict[str, tuple[Step, float]] = {}
        self._spinner = Spinner("dots")
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=8)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, step: Step) -> None:
        """Take one event in, from any thread."""
        with self._lock:
            before = self._steps.get(step.name)
            self._steps[step.name] = (step, time.monotonic() - step.seconds)
        # A log wants how each step began and ended, not every count in between.
        if not self._console.is_terminal and (before is None or step.done or step.failed):
            mark = "✗" if step.failed else "✓" if step.done else "…"
            took = f" ({output.duration(step.seconds)})" if step.seconds >= 1 else ""
            self._console.print(f"{mark} {step.name:<16} {escape(step.text)}{took}", soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for width in (1, 16, 5):
            table.add_column(min_width=width, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        with self._lock:
            rows = list(self._steps.values())
        for step, began in rows:
            over = step.done or step.failed
            mark = Text("✗", "red") if step.failed else Text("✓", "green") if step.done else self._spinner
            seconds = step.seconds if over else time.monotonic() - began
            style = "red" if step.failed else "" if step.done else "dim"
            table.add_row(mark, Text(step.name, "bold"), Text(f"{seconds:4.0f} s", "dim"), Text(step.text, style))
        return table


@dataclass(frozen=True)
class Daemon:
    """One of the processes a local cloud consists of."""

    name: str
    alive: bool
    pid: int
    url: str
    log: str

    @classmethod
    def of(cls, name: str, pidfile: Path, log: Path, url: str) -> Daemon:
        """The daemon of this pid file."""
        found = process.read(pidfile)
        return cls(name, found is not None, found.pid if found else 0, url, str(log))


@dataclass(frozen=True)
class Machine:
    """An EC2 instance of the local cloud: what its directory, its processes and the database say."""

    instance: str
    agent: int
    role: str
    pool: str
    state: str
    release: str
    running: int
    heartbeat_age: float | None
    console: str


@dataclass(frozen=True)
class Status:
    """A local cloud at this moment."""

    directory: Path
    state: LocalState
    daemons: Sequence[Daemon]
    machines: Sequence[Machine]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "directory": str(self.directory),
            "up": all(d.alive for d in self.daemons),
            "endpoints": asdict(self.state),
            "environment": self.state.environment(),
            "daemons": [asdict(d) for d in self.daemons],
            "nodes": [asdict(m) for m in self.machines],
        }


def machines(directory: Path, nodes: Sequence[NodeRow]) -> list[Machine]:
    """The machines that have a directory and are not dead, with what the database knows of them."""
    known: Mapping[str, NodeRow] = {n.instance_id: n for n in nodes}
    found = []
    home = directory / "nodes"
    for path in sorted(home.iterdir()) if home.is_dir() else []:
        agent = process.read(node.pidfile(path))
        view = known.get(path.name)
        if agent is None and (view is None or view.state == "gone") and node.is_off(path):
            continue
        found.append(
            Machine(
                path.name,
                agent.pid if agent else 0,
                view.role if view else "",
                view.pool if view else "",
                view.state if view else "booting",
                view.release if view else "",
                view.running if view else 0,
                view.heartbeat_age_seconds if view else None,
                node.last_words(path),
            )
        )
    return found


def show(status: Status) -> None:
    """Print the status as tables."""
    output.print_table(
        ["daemon", "#pid", "address"], [(d.name, d.pid if d.alive else "not running", d.url) for d in status.daemons]
    )
    rows = []
    for m in status.machines:
        age = "-" if m.heartbeat_age is None else f"{m.heartbeat_age:.1f} s"
        rows.append((m.instance, m.role, m.pool, m.state, m.release, m.running, age))
    if rows:
        output.results.print()
        output.print_table(["instance", "role", "pool", "state", "release", "?#tasks", "?#heartbeat"], rows)
    for m in status.machines:
        if not m.role:
            output.note(f"{m.instance} is booting: {m.console}")
    if not all(d.alive for d in status.daemons):
        output.note("not everything runs: `deployctl local up` starts what is missing")
    output.note(f"logs and nodes: {status.directory}")


def hint(state: LocalState) -> str:
    """How to talk to the local cloud. Pure."""
    return f"AWS at {state.aws_endpoint}, database {state.database_url}, `deployctl local status` shows the rest"
