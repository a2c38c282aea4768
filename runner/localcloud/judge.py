"""The judge: what a ledger of task executions says about the platform's promises.

A ledger line is one JSON object: {event, run_id, task_id, attempt, node, pid, machine, t, wall}, written by the task
itself (see examples/temperatures/ledger.py). `event` is start, end (it completed), fail (it raised) or overlap (it
found another execution of the same task instance under way); `t` is the machine's monotonic clock in nanoseconds.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

EVENTS = ("start", "end", "fail", "overlap")


class Instance(NamedTuple):
    """One task of one run."""

    run_id: str
    task_id: str


class Execution(NamedTuple):
    """One time that an attempt of a task instance really ran."""

    instance: Instance
    attempt: int
    node: str


@dataclass(frozen=True)
class Verdict:
    """What was found. `tasks` counts the expected task instances that completed.

    lost: expected, never completed. killed: started, and neither completed nor raised. overlapped: ran while another
    execution of the same instance was running. repeated: started after the instance had completed.
    """

    tasks: int
    lost: tuple[Instance, ...] = ()
    killed: tuple[Execution, ...] = ()
    overlapped: tuple[Instance, ...] = ()
    repeated: tuple[Execution, ...] = ()

    @property
    def ok(self) -> bool:
        """Nothing lost, no overlap, nothing run again: what must hold whatever dies."""
        return not (self.lost or self.overlapped or self.repeated)

    def summary(self) -> str:
        """tasks=<n> lost=<n> killed=<n> overlapped=<n> repeated=<n>"""
        names = ("lost", "killed", "overlapped", "repeated")
        return " ".join([f"tasks={self.tasks}", *(f"{n}={len(getattr(self, n))}" for n in names)])


@dataclass
class _Span:
    execution: Execution
    machine: str
    start: int
    end: int | None = None  # None while open: a killed execution's end is not known
    completed: bool = False


@dataclass
class _History:
    spans: list[_Span] = field(default_factory=list)
    open: dict[tuple[Any, ...], _Span] = field(default_factory=dict)
    completed: bool = False
    overlapped: bool = False
    repeated: list[Execution] = field(default_factory=list)


def judge(lines: Iterable[str], expected: Iterable[tuple[str | int, str]]) -> Verdict:
    """Judge the runs that `expected` names, (run id, task id) for each instance that had to complete.

    Lines of other runs are not looked at. The lines' order is that of the file. Raises ValueError naming the line
    that cannot be read: a ledger with holes proves nothing.
    """
    wanted = sorted({Instance(str(run), task) for run, task in expected})
    runs = {i.run_id for i in wanted}
    histories: defaultdict[Instance, _History] = defaultdict(_History)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _read(number, line)
        instance = Instance(str(entry["run_id"]), entry["task_id"])
        if instance.run_id in runs:
            _take(histories[instance], instance, entry, number)
    killed, repeated, overlapped = [], [], []
    for instance, history in sorted(histories.items()):
        killed += [s.execution for s in history.spans if s.end is None]
        repeated += history.repeated
        if history.overlapped or _crosses(history.spans):
            overlapped.append(instance)
    lost = tuple(i for i in wanted if i not in histories or not histories[i].completed)
    return Verdict(len(wanted) - len(lost), lost, tuple(killed), tuple(overlapped), tuple(repeated))


def read_ledger(directory: Path) -> list[str]:
    """The lines of a ledger directory, none if nothing was written yet."""
    path = directory / "ledger.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def _read(number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        known = entry["event"] in EVENTS and isinstance(entry["t"], int)
        missing = {"run_id", "task_id", "attempt", "node", "pid", "machine"} - entry.keys()
    except (ValueError, KeyError, TypeError):
        known, missing = False, set()
    if not known or missing:
        raise ValueError(f"ledger line {number} cannot be read: {line[:200]!r}")
    return dict(entry)


def _take(history: _History, instance: Instance, entry: dict[str, Any], number: int) -> None:
    process = (entry["attempt"], entry["node"], entry["machine"], entry["pid"])
    event = entry["event"]
    if event == "start":
        span = _Span(Execution(instance, entry["attempt"], entry["node"]), entry["machine"], entry["t"])
        if history.completed and not any(s.completed and _covers(s, span) for s in history.spans):
            history.repeated.append(span.execution)
        history.spans.append(span)
        history.open[process] = span  # one left open by the same process stays killed
        return
    if event == "overlap":
        history.overlapped = True
        return
    ended = history.open.pop(process, None)
    if ended is None:
        raise ValueError(f"ledger line {number}: {event} without a start: {instance.run_id} {instance.task_id}")
    ended.end = entry["t"]
    if event == "end":
        ended.completed = history.completed = True


def _covers(span: _Span, other: _Span) -> bool:
    # Written after the other's end, yet begun before it: that is an overlap, counted as one.
    return span.machine == other.machine and span.end is not None and span.start <= other.start < span.end


def _crosses(spans: list[_Span]) -> bool:
    """Do two executions on one machine share an instant? One that was killed counts as its first instant."""
    latest: dict[str, int] = {}  # machine → the end that is furthest
    for span in sorted(spans, key=lambda s: s.start):
        if span.start < latest.get(span.machine, span.start):
            return True
        end = span.start if span.end is None else span.end
        latest[span.machine] = max(end, latest.get(span.machine, end))
    return False
