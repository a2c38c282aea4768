"""Connections, pools and variables in the database. What their values mean is the matter of `runner.objects`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, text

from runner.state.transitions import notify

Kind = Literal["connection", "pool", "variable"]
KINDS: Sequence[Kind] = ("connection", "pool", "variable")

_ALL = text("""
SELECT 'connection' AS kind, name, value, source FROM connection
UNION ALL SELECT 'variable', name, value, source FROM variable
UNION ALL SELECT 'pool', name, jsonb_build_object('slots', slots, 'description', description), source FROM pool
ORDER BY 1, 2
""")
_FIND = {
    "connection": text("SELECT value FROM connection WHERE name = :name"),
    "variable": text("SELECT value FROM variable WHERE name = :name"),
}
_SAVE = {
    kind: text(f"""
        INSERT INTO {kind} (name, value, source, updated_by) VALUES (:name, CAST(:value AS jsonb), :source, :who)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value, source = excluded.source,
            updated_at = now(), updated_by = excluded.updated_by
    """)
    for kind in ("connection", "variable")
}
_SAVE["pool"] = text("""
INSERT INTO pool (name, slots, description, source)
SELECT :name, p.slots, p.description, :source
FROM jsonb_to_record(CAST(:value AS jsonb)) AS p(slots int, description text)
ON CONFLICT (name) DO UPDATE SET slots = excluded.slots, description = excluded.description, source = excluded.source
""")
_RESEAL = {
    kind: text(f"UPDATE {kind} SET value = CAST(:value AS jsonb) WHERE name = :name")
    for kind in ("connection", "variable")
}
_REMOVE = {kind: text(f"DELETE FROM {kind} WHERE name = :name") for kind in KINDS}


@dataclass(frozen=True)
class Row:
    """One object as it is stored; `source` is the file it was applied from, None for one made by hand."""

    kind: Kind
    name: str
    value: Any
    source: str | None


def lock(connection: Connection) -> None:
    """One who applies at a time, until the end of the transaction."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('objects'))"))


def all_of(connection: Connection) -> list[Row]:
    """Everything, by kind and name."""
    return [Row(**row) for row in connection.execute(_ALL).mappings()]


def find(connection: Connection, kind: Literal["connection", "variable"], name: str) -> Row | None:
    """One connection or variable; None if there is none of this name."""
    row = connection.execute(_FIND[kind], {"name": name}).one_or_none()
    return None if row is None else Row(kind, name, row.value, None)


def save(connection: Connection, kind: Kind, name: str, value: Any, *, source: str | None, who: str) -> None:
    """Add or replace one; `value` is plain JSON."""
    values = {"name": name, "value": json.dumps(value), "source": source}
    connection.execute(_SAVE[kind], values if kind == "pool" else {**values, "who": who})
    if kind == "pool":
        notify(connection)  # more slots may let tasks go


def reseal(connection: Connection, kind: Kind, name: str, value: Any) -> None:
    """Replace the value and nothing else."""
    connection.execute(_RESEAL[kind], {"name": name, "value": json.dumps(value)})


def remove(connection: Connection, kind: Kind, name: str) -> None:
    """Remove one; a pool that is gone limits nothing any more."""
    connection.execute(_REMOVE[kind], {"name": name})
    if kind == "pool":
        notify(connection)
