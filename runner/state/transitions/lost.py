"""Handing on what ran where nothing runs any more."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, text

from runner.state.transitions.finish import finish
from runner.state.transitions.records import Lease, Outcome


def leases(connection: Connection) -> set[Lease]:
    """All leases in force: their token and the end that was last written for them."""
    rows = connection.execute(text("SELECT lease_token, lease_expires_at FROM task_instance WHERE state = 'running'"))
    return {(row[0], row[1]) for row in rows}


def interrupt_leases(connection: Connection, expired: Iterable[Lease], *, cause: str = "lease expired") -> int:
    """Hand on the tasks of these leases, unless one was renewed since it was read. Returns how many.

    A task that is to be held (`on_lost="hold"`) stays, until its node is proven dead or a person decides.
    """
    ends = dict(expired)
    found = _held(connection, "lease_token = ANY (CAST(:tokens AS uuid[]))", tokens=[str(t) for t in ends])
    return _interrupt(connection, [Outcome(i, t, "interrupted", error=cause, expires=ends[t]) for i, t in found])


def interrupt_node(connection: Connection, node_id: str, cause: str) -> int:
    """Hand on what this node was running; returns how many tasks.

    Only on proof that none of it runs any more: the node is dead, or says so itself after a new start.
    """
    found = _held(connection, "node_id = :node_id", node_id=node_id)
    return _interrupt(connection, [Outcome(i, t, "interrupted", error=cause) for i, t in found])


def interrupt_tokens(connection: Connection, tokens: Sequence[uuid.UUID], cause: str) -> int:
    """Hand on what holds these leases, of which their own node says that it runs none of it. Returns how many."""
    found = _held(connection, "lease_token = ANY (CAST(:tokens AS uuid[]))", tokens=[str(t) for t in tokens])
    return _interrupt(connection, [Outcome(i, t, "interrupted", error=cause) for i, t in found])


def _held(connection: Connection, which: str, **values: object) -> list[tuple[int, uuid.UUID]]:
    statement = text(f"SELECT id, lease_token FROM task_instance WHERE state = 'running' AND {which} ORDER BY id")
    return [(row[0], row[1]) for row in connection.execute(statement, values)]


def _interrupt(connection: Connection, outcomes: Sequence[Outcome]) -> int:
    return len(finish(connection, outcomes).accepted)
