"""How plans, results, drift and cost are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from runner.deployctl import output
from runner.deployctl.job import StackResult
from runner.deployctl.locks import Held

_NOT_LISTED = 12  # more additions than this are counted, not listed, before an apply


def confirm_plans(plans: Sequence[StackResult]) -> bool:
    """Show what the plans do and ask whether to."""
    for result in plans:
        show_changes(result, everything=False)
    return output.confirm(f"Apply {'this' if len(plans) == 1 else 'these'}?")


def show_changes(result: StackResult, *, everything: bool) -> None:
    """List what a plan touches on stderr: additions in short, the rest in full."""
    summary = result.summary
    show = output.progress.print
    for warning in result.warnings:
        show(f"[yellow]warning:[/] {result.stack}: {output.escape(warning)}")
    if summary.empty:
        return
    show(f"[bold]{result.stack}[/]: {summary.line()}")
    for change in summary.imports:
        show(f"  [cyan]<[/] {output.escape(f'{change.address} (exists: {change.id})')}")
    if everything or len(summary.adds) <= _NOT_LISTED:
        for change in summary.adds:
            show(f"  [green]+[/] {output.escape(change.address)}")
    else:
        show(f"  [green]+[/] {len(summary.adds)} resources")
    for sign, changes in (
        ("[yellow]~[/]", summary.changes),
        ("[red]±[/]", summary.replaces),
        ("[red]-[/]", summary.destroys),
    ):
        for change in changes:
            why = " (its creation did not finish)" if change.tainted else ""
            why += f" (exists: {change.id})" if change.id else ""
            show(f"  {sign} {output.escape(change.address + why)}")
            for field in change.fields:
                show(f"      {output.escape(f'{field.name}: {field.before} → {field.after}')}")


def show_results(results: Sequence[StackResult]) -> None:
    """How each stack ended, as a table on stdout."""
    rows = []
    for r in results:
        status = f"after {', '.join(r.needs)}" if r.needs else r.status
        counts = [len(r.summary.adds), len(r.summary.changes), len(r.summary.replaces), len(r.summary.destroys)]
        rows.append((r.stack, status, *(c or "" for c in counts), output.duration(r.seconds)))
    output.print_table(["stack", "status", "#add", "#change", "#replace", "#destroy", "?#time"], rows)


def text(value: Any) -> str:
    """A value of an output on one line."""
    return value if isinstance(value, str) else json.dumps(value)


def show_drift(results: Sequence[StackResult]) -> None:
    """What is not as the state says, one line a field, as a table on stdout."""
    rows = []
    for result in results:
        for change in result.summary.items:
            if change.action == "destroy":
                rows.append((result.stack, change.address, "", "there", "gone"))
            for field in change.fields:
                rows.append((result.stack, change.address, field.name, field.before, field.after))
    if rows:
        output.print_table(["stack", "resource", "field", "~in the state", "~found"], rows)


def show_locks(found: Sequence[Held], *, on_stderr: bool = False) -> None:
    """Who holds which lock since when, as a table, or before a question in lines on stderr."""
    if on_stderr:
        for h in found:
            output.note(f"{h.stack}: locked by {h.lock.line()}; {h.holder}; id {h.lock.id}")
        return
    rows = [
        (
            h.stack,
            h.lock.who,
            h.lock.verb,
            f"{h.lock.created:%Y-%m-%d %H:%M:%S}" if h.lock.created else "",
            h.holder,
            h.lock.id,
        )
        for h in found
    ]
    output.print_table(["stack", "who", "doing", "since (UTC)", "~holder", "?id"], rows)


def show_cost(results: Sequence[StackResult]) -> None:
    """What the stacks cost a month, as a table on stdout, and how far to trust it."""
    found = [(r.stack, r.cost) for r in results if r.cost]
    if not found:
        return
    rows = [(name, *map(_dollars, (c.before, c.after, c.after - c.before, c.at_most))) for name, c in found]
    if len(found) > 1:
        sums = [
            sum(v) for v in zip(*((c.before, c.after, c.after - c.before, c.at_most) for _, c in found), strict=True)
        ]
        rows.append(("all", *map(_dollars, sums)))
    output.print_table(["stack", "#$/month now", "#planned", "#change", "#at most"], rows)
    date = found[0][1].date
    output.note(f"an estimate from list prices of {date} in us-east-1: no traffic, requests, logs or discounts")
    unpriced = [a for _, c in found for a in c.unpriced]
    if unpriced:
        output.note(f"not in the price table: {', '.join(unpriced)}")


def _dollars(amount: float) -> str:
    return f"{amount:,.0f}"
