"""What ansible's events say of each host, and a line that moves while they come."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from runner.deployctl import output


@dataclass
class Host:
    """How one host ended. `result`: unchanged, changed, failed or unreachable; `what`: the tasks that made it so."""

    name: str
    ok: int = 0
    changed: int = 0
    result: str = "unchanged"
    what: str = ""
    tasks: list[str] = field(default_factory=list)


class Tally:
    """Hosts by name, from events. Pure."""

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self.task = ""

    def hosts(self) -> list[Host]:
        """All hosts heard of, those with trouble first."""
        order = ("failed", "unreachable", "changed", "unchanged")
        return sorted(self._hosts.values(), key=lambda h: (order.index(h.result), h.name))

    def count(self, result: str) -> int:
        """How many hosts are so."""
        return sum(h.result == result for h in self._hosts.values())

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event of ansible-runner in; kinds that are unknown say nothing."""
        kind, data = event.get("event"), event.get("event_data") or {}
        if kind in ("playbook_on_task_start", "playbook_on_handler_task_start"):
            self.task = str(data.get("task", ""))
        name = data.get("host")
        if not name or kind not in _RESULTS:
            return
        host = self._hosts.setdefault(str(name), Host(str(name)))
        task, result = str(data.get("task", "")), data.get("res") or {}
        match kind:
            case "runner_on_ok":
                host.ok += 1
                if result.get("changed"):
                    host.changed += 1
                    host.tasks.append(task)
                    if host.result == "unchanged":
                        host.result = "changed"
            case "runner_on_failed" if not data.get("ignore_errors"):
                host.result, host.what = "failed", f"{task}: {reason(result)}"
            case "runner_on_unreachable":
                host.result, host.what = "unreachable", reason(result)
        if host.result == "changed":
            host.what = ", ".join(dict.fromkeys(host.tasks))


_RESULTS = ("runner_on_ok", "runner_on_failed", "runner_on_unreachable", "runner_on_skipped")


def reason(result: Mapping[str, Any]) -> str:
    """Why a task failed, in one line. Pure."""
    failed = [r for r in result.get("results", ()) if isinstance(r, dict) and r.get("failed")]
    source = failed[0] if failed else result
    for key in ("msg", "stderr", "module_stderr", "exception"):
        text = str(source.get(key) or "").strip()
        if text and text != "non-zero return code":
            return " ".join(text.splitlines()[-1 if "stderr" in key else 0].split())
    return "it gives no reason"


class Display:
    """A context manager: a moving line on a terminal, else a line for each task; failures and diffs above it."""

    def __init__(self, tally: Tally, *, show_diffs: bool = False, console: Console | None = None) -> None:
        self._tally = tally
        self._diffs = show_diffs
        self._console = console or output.progress
        self._live = self._console.is_terminal
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=8,
            expand=True,
        )
        self._line = self._progress.add_task("reading the inventory", count="")

    def __enter__(self) -> Display:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def event(self, event: Mapping[str, Any]) -> bool:
        """Take one event of ansible-runner in and show it. True: ansible-runner keeps the event."""
        before = self._tally.task
        self._tally.take(event)
        data = event.get("event_data") or {}
        result = data.get("res") or {}
        where = f"{data.get('host')}: {data.get('task')}"
        if event.get("event") in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            self._console.print(f"[red]✗[/] {output.escape(f'{where}: {reason(result)}')}")
        elif self._diffs and event.get("event") == "runner_on_ok" and result.get("changed"):
            self._console.print(f"[yellow]~[/] {output.escape(where)}")
            for line in diff_lines(result):
                self._console.print(f"    {output.escape(line)}")
        if self._tally.task != before and not self._live:
            self._console.print(output.escape(self._tally.task))
        self._progress.update(self._line, description=output.escape(self._tally.task), count=self._count())
        return True

    def _count(self) -> str:
        kinds = ("unchanged", "changed", "failed", "unreachable")
        return ", ".join(f"{n} {kind}" for kind in kinds if (n := self._tally.count(kind)))


def diff_lines(result: Mapping[str, Any]) -> list[str]:
    """What a task would change, as lines with - and + before them. Pure."""
    lines = []
    parts = [r for r in result.get("results", [result]) if isinstance(r, dict) and r.get("changed")]
    for part in parts:
        found = part.get("diff") or []
        for diff in found if isinstance(found, list) else [found]:
            if "prepared" in diff:
                lines += str(diff["prepared"]).splitlines()
            before, after = (_text(diff.get(side)) for side in ("before", "after"))
            name = diff.get("after_header") or diff.get("before_header") or ""
            if name and before != after:
                lines.append(str(name))
            lines += [
                line
                for line in difflib.unified_diff(before, after, n=0, lineterm="")
                if not line.startswith(("---", "+++", "@@"))
            ]
    return lines


def _text(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{key}: {value[key]}" for key in sorted(value)]
    return str(value or "").splitlines()
