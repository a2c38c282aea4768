"""What every command prints with: progress and errors on stderr, results on stdout, `--json` for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape as escape
from rich.table import Table

from runner.settings import UsageError

# Progress, notes and errors. rich looks sys.stderr up on each write, so tests may replace it.
progress = Console(stderr=True, highlight=False, soft_wrap=True)
# Results: what a pipe should get.
results = Console(highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Say on stderr what is going on; markup is not interpreted."""
    progress.print(escape(text))


def fail(message: str, hint: str = "") -> None:
    """Print an error as two lines at most, with its hint."""
    progress.print(f"[bold red]error:[/] {escape(_one_line(message))}")
    if hint:
        progress.print(f"[bold]hint:[/] {escape(_one_line(hint))}")


def print_json(value: Any) -> None:
    """Print a result for a machine: plain JSON on stdout, dates and paths as text."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print rows on stdout. A column whose name starts with `#` is a number: aligned right, without the `#`."""
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(
            escape(name.removeprefix("#")),
            justify="right" if name.startswith("#") else "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    results.print(table)


def confirm(question: str, *, answer: str = "yes") -> bool:
    """Ask on the terminal; true when the answer typed is exactly `answer`.

    Raises UsageError when there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UsageError("this needs a confirmation and there is no terminal to ask on", "pass --yes")
    try:
        typed = progress.input(f"[bold]{escape(question)}[/] Type [bold]{escape(answer)}[/] to go on: ")
    except EOFError:
        return False
    return typed.strip() == answer


def duration(seconds: float) -> str:
    """Seconds as people say them: `7 s`, `2 min 5 s`, `1 h 3 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _one_line(text: str) -> str:
    return " ".join(text.split())
