"""The safeties, and how each is taken away: the one file to change when the statements that hold them do.

`mutate` works on the process it is called in, on `runner.state.transitions` and every module below it. A safety that
is a condition in SQL is found by a pattern in the module-level statements; a pattern that is found nowhere is an
error, not a silent pass. A safety that is a duty is replaced by one that does nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import ModuleType
from typing import Any

# name → (which statement, what is taken out of it). In SQL of runner/state/transitions.
CONDITIONS = {
    # whoever says that a task has ended is believed
    "token": (r"WITH outcome AS.*t\.lease_token = o\.token", r"\s+AND t\.lease_token = [oe]\.token"),
    # a node that drains may claim
    "gate": (r"FROM node WHERE .* FOR SHARE", r"\s+AND state = 'ready' FOR SHARE"),
    # the gate is looked at and not held: a claim and a cordon may both win
    "gate-lock": (r"FROM node WHERE .* FOR SHARE", r"\s+FOR SHARE"),
    # a message is believed whatever state its task is in
    "claim": (
        r"AND attempt = :attempt AND state = 'queued' FOR NO KEY UPDATE",
        r"\s+AND attempt = :attempt AND state = 'queued'|\s+AND t\.state IN \('ready', 'queued'\)",
    ),
}
# name → (function, what it returns instead). Functions of runner.state.transitions.
DUTIES: dict[str, tuple[str, Any]] = {
    "resend": ("queued", ()),
    "reap": ("interrupt_leases", 0),
}


def mutate(name: str) -> list[tuple[ModuleType, str, Any]]:
    """Take this safety away in this process; returns what to put back: (module, attribute, value)."""
    if name in DUTIES:
        function, value = DUTIES[name]
        return replace(function, lambda *_, **__: type(value)(value))
    statement, taken = CONDITIONS[name]
    old: list[tuple[ModuleType, str, Any]] = []
    for module in modules():
        for attribute, value in list(vars(module).items()):
            sql = getattr(value, "text", None)
            if not isinstance(sql, str) or not re.search(statement, sql, re.DOTALL):
                continue
            changed, n = re.subn(taken, "", sql)
            if n:
                old.append((module, attribute, value))
                setattr(module, attribute, type(value)(changed))
    if not old:
        raise RuntimeError(f"mutation {name}: nothing in runner.state.transitions has {taken!r} any more")
    return old


def replace(function: str, by: Any) -> list[tuple[ModuleType, str, Any]]:
    """Put another function in the place of this one, wherever the package names it."""
    was = getattr(importlib.import_module("runner.state.transitions"), function)
    places = [(module, function, was) for module in modules() if getattr(module, function, None) is was]
    for module, name, _ in places:
        setattr(module, name, by)
    return places


def restore(old: list[tuple[ModuleType, str, Any]]) -> None:
    """Undo `mutate`."""
    for module, attribute, value in old:
        setattr(module, attribute, value)


def modules() -> list[ModuleType]:
    """`runner.state.transitions` and all modules in it."""
    package = importlib.import_module("runner.state.transitions")
    inner = pkgutil.iter_modules(getattr(package, "__path__", []))
    return [package, *(importlib.import_module(f"{package.__name__}.{m.name}") for m in inner)]
