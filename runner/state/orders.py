"""Orders to single machines: change to another release in place.

A machine is named by its first node, on AWS the instance id. A worker of another release on it is a node of its own,
`<machine>.<release>`, so that both can run until the old one has drained.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from runner.state.transitions import notify


@dataclass(frozen=True)
class Order:
    """The release a machine shall run. `error`: why that is not possible, as its agent has found last."""

    release: str
    reason: str
    requested_by: str
    drain_seconds: float
    error: str | None


_GIVE = text("""
WITH given AS (
    INSERT INTO node_order (machine, release, reason, requested_by, drain_seconds)
    VALUES (:machine, :release, :reason, :by, :seconds)
    ON CONFLICT (machine) DO UPDATE SET release = excluded.release, reason = excluded.reason, error = NULL,
        requested_by = excluded.requested_by, drain_seconds = excluded.drain_seconds, ordered_at = now()
    WHERE node_order.release <> excluded.release
    RETURNING machine
), back AS (
    -- To a release that was here before: its node serves again, or as soon as its agent has started it.
    UPDATE node SET state = 'ready', reason = :reason, requested_by = :by, deadline_at = NULL, changed_at = now()
    FROM given WHERE release = :release AND state IN ('draining', 'drained', 'gone')
      AND (node_id = given.machine OR node_id = given.machine || '.' || release)
    RETURNING node_id
), recorded AS (
    INSERT INTO event (kind, subject, state, node_id, detail)
    SELECT 'node', machine, 'ordered', machine, 'to release ' || :release || ': ' || :reason || ', by ' || :by
    FROM given
)
SELECT count(*) FROM given
""")


def give(connection: Connection, machine: str, release: str, *, reason: str, by: str, drain_seconds: float) -> bool:
    """Order a machine to change to this release; False if that is its order already.

    Its agent fetches the release, starts its service beside the old one and, once that is ready, drains the old one:
    for `drain_seconds` at most. Ordering the old release again turns all of it back, at any moment.
    """
    values = {"machine": machine, "release": release, "reason": reason, "by": by, "seconds": drain_seconds}
    given: bool = connection.execute(_GIVE, values).scalar_one() > 0
    if given:
        notify(connection)
    return given


def find(connection: Connection, machine: str) -> Order | None:
    """The order of this machine, None if it has none."""
    row = connection.execute(
        text("SELECT release, reason, requested_by, drain_seconds, error FROM node_order WHERE machine = :machine"),
        {"machine": machine},
    ).one_or_none()
    return Order(*row) if row else None


def failed(connection: Connection, machine: str, release: str, error: str) -> None:
    """Write down why the order cannot be carried out; it stands, and is tried again."""
    connection.execute(
        text("UPDATE node_order SET error = :error WHERE machine = :machine AND release = :release"),
        {"machine": machine, "release": release, "error": error},
    )
