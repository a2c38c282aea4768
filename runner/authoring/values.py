"""Return values travel between tasks as JSON: what fits, and which part of a value does not."""

from __future__ import annotations

import json
import math
from typing import Any

from runner.authoring.errors import ReturnValueError


def check_return_value(task_id: str, value: Any) -> Any:
    """The value as the next task will see it (tuples become lists).

    Raises ReturnValueError naming the task, the part of the value and its type if JSON cannot hold it, or
    PostgreSQL's jsonb cannot (NaN, infinities, NUL characters, lone surrogates).
    """
    problem = _problem(value, "", set())
    if problem:
        where, what = problem
        raise ReturnValueError(
            f"task {task_id!r} returned {what}{f' at {where}' if where else ''}: return values must be JSON "
            f"(dict with str keys, list, str, int, float, bool, None); put anything else in storage and "
            f"return where it is"
        )
    return json.loads(json.dumps(value))


def not_json(value: Any) -> str:
    """Which part of a value JSON or PostgreSQL's jsonb cannot hold, and why; empty if all of it fits."""
    problem = _problem(value, "", set())
    return f"{problem[0] or 'it'} is {problem[1]}, which is not JSON" if problem else ""


def _problem(value: Any, where: str, parents: set[int]) -> tuple[str, str] | None:
    if value is None or isinstance(value, bool | int):
        return None
    if isinstance(value, str):
        what = _bad_text(value)
        return (where, f"a str with {what}") if what else None
    if isinstance(value, float):
        return None if math.isfinite(value) else (where, f"float {value}")
    if not isinstance(value, dict | list | tuple):
        return where, f"a {_type_name(value)}"
    if id(value) in parents:
        return where, f"a {_type_name(value)} that contains itself"
    inside = parents | {id(value)}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in pairs:
        if isinstance(value, dict) and (not isinstance(key, str) or _bad_text(key)):
            return where, f"a dict with the key {key!r} ({_type_name(key)})"
        found = _problem(item, f"{where}[{key!r}]", inside)
        if found:
            return found
    return None


def _bad_text(text: str) -> str:
    if "\x00" in text:
        return "a NUL character"
    # isascii is a look at a flag: the usual text costs nothing.
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        return "a lone surrogate"
    return ""


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
