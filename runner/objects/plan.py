"""What would change, and changing it: all of a file or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection

from runner.objects.file import Objects
from runner.objects.secrets import Cipher, Secret, masked
from runner.settings import UsageError
from runner.state import objects
from runner.state.objects import KINDS, Kind

Action = Literal["add", "change", "remove"]


@dataclass(frozen=True)
class Change:
    """One object that is not as the file says. `value` is to be stored; `what` is for people, secrets masked."""

    action: Action
    kind: Kind
    name: str
    value: Any
    what: str = ""

    def __str__(self) -> str:
        sign = {"add": "+", "change": "~", "remove": "-"}[self.action]
        return f"{sign} {self.kind} {self.name}" + (f"  {self.what}" if self.what else "")


def diff(wanted: Objects, connection: Connection, cipher: Cipher, *, prune: bool = False) -> list[Change]:
    """What `apply` would do, in a fixed order. With `prune` what is not in the file goes, if a file brought it.

    Raises UsageError where a literal secret is to be compared and no key fits.
    """
    stored = {(row.kind, row.name): row for row in objects.all_of(connection)}
    changes: list[Change] = []
    for kind in KINDS:
        for name, value in sorted(by_kind(wanted)[kind].items()):
            row = stored.get((kind, name))
            if row is None:
                changes.append(Change("add", kind, name, value, _shown(value)))
                continue
            current = _open(cipher, row.value)
            if current != value:
                changes.append(Change("change", kind, name, value, _difference(current, value)))
            elif row.source is None and prune:
                changes.append(Change("change", kind, name, value, "from now on as the file says"))
        if prune:
            gone = [r for r in stored.values() if r.kind == kind and r.name not in by_kind(wanted)[kind] and r.source]
            changes += [Change("remove", kind, r.name, None) for r in sorted(gone, key=lambda r: r.name)]
    return changes


def apply(
    wanted: Objects, connection: Connection, cipher: Cipher, *, source: str, who: str, prune: bool = False
) -> list[Change]:
    """Make the database say what the file says, in the caller's transaction; returns what was changed."""
    objects.lock(connection)
    changes = diff(wanted, connection, cipher, prune=prune)
    for change in changes:
        if change.action == "remove":
            objects.remove(connection, change.kind, change.name)
        else:
            objects.save(connection, change.kind, change.name, cipher.seal(change.value), source=source, who=who)
    return changes


def rotate(connection: Connection, cipher: Cipher) -> int:
    """Encrypt every literal secret anew with the first key; returns how many objects had one."""
    objects.lock(connection)
    count = 0
    for row in objects.all_of(connection):
        if masked(row.value) != row.value:
            objects.reseal(connection, row.kind, row.name, cipher.seal(cipher.open(row.value)))
            count += 1
    return count


def by_kind(wanted: Objects) -> dict[Kind, dict[str, Any]]:
    """Kind → name → value."""
    return {"connection": wanted.connection, "pool": wanted.pool, "variable": wanted.variable}


def _open(cipher: Cipher, value: Any) -> Any:
    try:
        return cipher.open(value)
    except UsageError as e:
        # A secret whose key is lost can still be replaced: it differs from whatever the file says.
        if e.hint.startswith("add the old key"):
            return masked(value)
        raise


def _shown(value: Any) -> str:
    value = masked(value)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items() if v not in ("", {}))
    return str(value)


def _difference(before: Any, after: Any) -> str:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return f"{_shown(before)} → {_shown(after)}"
    said = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if old != new:
            same = isinstance(old, Secret) and isinstance(new, Secret)
            said.append(f"{key}: another secret" if same else f"{key}: {_one(old)} → {_one(new)}")
    return ", ".join(said)


def _one(value: Any) -> str:
    return "none" if value is None else str(masked(value))
