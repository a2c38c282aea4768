"""The judge of a long run: reads the ledger of noops.py once, line by line, and keeps a number for each task."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Instance = tuple[int, str]  # run, task


@dataclass
class Tally:
    """What the lines say; `overlapped`, `failed` and `twice` must be empty, whatever was killed.

    executions: attempts that started. killed: of them, those that neither completed nor raised. repeated: instance →
    the attempts that started after it had completed. twice: one attempt that was claimed by two.
    """

    executions: int = 0
    completed: int = 0
    killed: int = 0
    overlapped: set[Instance] = field(default_factory=set)
    failed: set[Instance] = field(default_factory=set)
    twice: set[Instance] = field(default_factory=set)
    repeated: dict[Instance, list[int]] = field(default_factory=dict)
    _seen: dict[int, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def has_completed(self, run: int, task: str) -> bool:
        return self._seen[run].get(task, 0) < 0


def tally(lines: Iterable[bytes]) -> Tally:
    """Judge a ledger, in the order in which it was written.

    A task that ran once, which is nearly every one, costs one dictionary entry: its attempt, negative once it has
    completed. Of the others the whole history is kept.
    """
    t = Tally()
    odd: dict[Instance, list[tuple[str, int]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            event, run_, task_, attempt_ = line.decode().split()
            run, task, attempt = int(run_), sys.intern(task_), int(attempt_)
        except ValueError:
            raise ValueError(f"ledger line {number} cannot be read: {line[:200]!r}") from None
        tasks = t._seen[run]
        before = tasks.get(task)
        t.executions += event == "S"
        if before is None and event == "S":
            tasks[task] = attempt
        elif event == "E" and before == attempt and (run, task) not in odd:
            tasks[task] = -attempt
        else:
            history = odd.get((run, task))
            if history is None:
                history = odd[run, task] = _history(before)
            history.append((event, attempt))
            if event == "E":
                tasks[task] = -attempt
    t.completed = sum(value < 0 for tasks in t._seen.values() for value in tasks.values())
    t.killed = sum(value > 0 and (run, task) not in odd for run, ts in t._seen.items() for task, value in ts.items())
    for instance, history in odd.items():
        _judge(t, instance, history)
    return t


def _history(before: int | None) -> list[tuple[str, int]]:
    if before is None:
        return []
    return [("S", before)] if before > 0 else [("S", -before), ("E", -before)]


def _judge(t: Tally, instance: Instance, history: list[tuple[str, int]]) -> None:
    running: list[int] = []
    passed: set[int] = set()  # running, and another has started since
    started: set[int] = set()
    completed = False
    for event, attempt in history:
        if event == "S":
            if attempt in started:
                t.twice.add(instance)
            if completed:
                t.repeated.setdefault(instance, []).append(attempt)
            passed.update(running)
            started.add(attempt)
            running.append(attempt)
        elif event == "O":
            t.overlapped.add(instance)
        else:
            if attempt not in running:
                raise ValueError(f"ledger: {event} without a start: {instance} attempt {attempt}")
            running.remove(attempt)
            if attempt in passed:  # it was alive when that other one started
                t.overlapped.add(instance)
            completed = completed or event == "E"
            if event == "F":
                t.failed.add(instance)
    t.killed += len(running)


def read(path: Path) -> Iterator[bytes]:
    """The ledger's lines; none if there is none."""
    if path.exists():
        with path.open("rb") as file:
            yield from file
