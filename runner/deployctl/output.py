"""What every command prints with: progress and errors on stderr, results on stdout, `--json` for machines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape as escape
from rich.table import Table

from runner.settings import UsageError

# Progress, notes and errors. rich looks sys.stderr up on each write, so tests may replace it.
progress = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
# Results: what a pipe should get.
results = Console(highlight=False, emoji=False, soft_wrap=True)

_GAP = 2  # between two columns of a table
_PROSE_WIDTH = 16  # below this, prose is not worth its place


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
    """Print rows on stdout, as wide as they are where stdout is no terminal; see format_table for the columns.

    What had to be left out on a narrow terminal is said on stderr.
    """
    limit = results.width if sys.stdout.isatty() else None
    table, left_out = format_table(columns, [[str(cell) for cell in row] for row in rows], limit, title=title)
    if limit is not None:
        results.print(table)
        if left_out:
            note(f"left out at this width: {', '.join(left_out)} (a wider terminal or --json shows them)")
        return
    with results.capture() as captured:
        results.print(table, width=100_000)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))


def format_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], limit: int | None, *, title: str = ""
) -> tuple[Table, list[str]]:
    """A table that fits into `limit` cells of width (None: any width), and the names of the columns it left out. Pure.

    A column's name may start with marks: `?` it can be left out, the rightmost first, and is when it is empty;
    `#` a number, aligned right; `~` prose, which may go over several lines. Nothing else is ever cut or folded:
    an id in two pieces cannot be copied.
    """
    marks = [re.match(r"[?#~]*", name)[0] for name in columns]  # type: ignore[index]  # matches always
    names = [name[len(m) :] for name, m in zip(columns, marks, strict=True)]
    kept = [i for i, m in enumerate(marks) if "?" not in m or any(row[i].strip() for row in rows)]
    left_out: list[str] = []
    widths = [max(cell_len(text) for text in (name, *(row[i] for row in rows))) for i, name in enumerate(names)]
    least = [min(w, _PROSE_WIDTH) if "~" in m else w for w, m in zip(widths, marks, strict=True)]
    while limit is not None and sum(least[i] + _GAP for i in kept) - _GAP > limit:
        optional = [i for i in kept if "?" in marks[i]]
        if not optional:
            break
        kept.remove(optional[-1])
        left_out.insert(0, names[optional[-1]])
    natural = sum(widths[i] + _GAP for i in kept) - _GAP
    table = Table(
        box=box.SIMPLE_HEAD,
        width=natural if limit is None else max(min(natural, limit), sum(least[i] + _GAP for i in kept) - _GAP),
        title=escape(title) or None,
        title_justify="left",
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for i in kept:
        prose = "~" in marks[i]
        table.add_column(
            escape(names[i]),
            justify="right" if "#" in marks[i] else "left",
            no_wrap=not prose,
            min_width=least[i],
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(escape(row[i]) for i in kept))
    return table, left_out


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
