"""Every change of a node's state.

booting → ready → draining → drained → gone, and draining → ready when a drain is called off. A node's row is
written only when its state changes; heartbeats have a table of their own.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from runner.state import transitions
from runner.state.transitions import notify


@dataclass(frozen=True)
class NodeInfo:
    """What a node says of itself when it registers. `boot_id` is new at every start of its service."""

    node_id: str
    role: str
    pool: str
    release: str
    boot_id: str
    slots: int = 0
    queues: Sequence[str] = field(default_factory=tuple)
    instance_id: str = ""
    address: str = ""


@dataclass(frozen=True)
class Orders:
    """The answer to a heartbeat: the node's state, its leases, and the last change of pipeline code.

    held: all that the database knows of. renewed: those of them that were renewed; a row that somebody else has
    locked at that moment is left for the next beat. ended: those whose task a person or a deadline wants ended.
    deploy: id of the newest line of the history of pipeline code.
    """

    state: str
    reason: str | None
    deadline_at: dt.datetime | None
    held: frozenset[uuid.UUID]
    renewed: frozenset[uuid.UUID]
    ended: frozenset[uuid.UUID]
    deploy: int = 0


def queue_of(node_id: str) -> str:
    """The queue that only this node consumes; a heartbeat run on it proves that this very node works."""
    return f"node.{node_id}"


_REGISTER = text("""
WITH old AS (
    SELECT state, boot_id FROM node WHERE node_id = :node_id
), registered AS (
    INSERT INTO node (node_id, role, pool, state, release, slots, queues, boot_id, instance_id, address)
    VALUES (:node_id, :role, :pool, :state, :release, :slots, :queues, :boot_id, :instance_id, :address)
    ON CONFLICT (node_id) DO UPDATE SET
        role = excluded.role, pool = excluded.pool, release = excluded.release, slots = excluded.slots,
        queues = excluded.queues, boot_id = excluded.boot_id, instance_id = excluded.instance_id,
        address = excluded.address, changed_at = now(),
        -- a drain outlives a restart: only a node that was not told to go becomes ready
        state = CASE WHEN node.state IN ('booting', 'ready') THEN excluded.state ELSE node.state END
    RETURNING node_id, state
), recorded AS (
    INSERT INTO event (kind, subject, state, node_id, detail)
    SELECT 'node', node_id, state, node_id, 'registered with release ' || CAST(:release AS text) FROM registered
)
SELECT registered.state, (SELECT boot_id FROM old) AS old_boot FROM registered
""")

_BEAT = """
    INSERT INTO node_heartbeat (node_id, at) SELECT node_id, now() FROM node WHERE node_id = :node_id
    ON CONFLICT (node_id) DO UPDATE SET at = excluded.at
"""

_HEARTBEAT = text(f"""
WITH beat AS ({_BEAT}), mine AS (
    SELECT id FROM task_instance
    WHERE state = 'running' AND node_id = :node_id AND lease_token = ANY (CAST(:tokens AS uuid[]))
    FOR NO KEY UPDATE SKIP LOCKED
), renewed AS (
    UPDATE task_instance t SET lease_expires_at = now() + make_interval(secs => :lease)
    FROM mine WHERE t.id = mine.id RETURNING t.lease_token
), held AS (
    SELECT lease_token, ordered FROM task_instance WHERE state = 'running' AND node_id = :node_id
)
SELECT state, reason, deadline_at, ARRAY(SELECT lease_token FROM held), ARRAY(SELECT lease_token FROM renewed),
       ARRAY(SELECT lease_token FROM held WHERE ordered IS NOT NULL),
       coalesce((SELECT id FROM deploy WHERE kind = 'code' ORDER BY id DESC LIMIT 1), 0)
FROM node WHERE node_id = :node_id
""")

_MOVE = text("""
WITH moved AS (
    UPDATE node SET state = :state, reason = coalesce(CAST(:reason AS text), reason),
        requested_by = coalesce(CAST(:by AS text), requested_by),
        deadline_at = CASE WHEN CAST(:seconds AS float) IS NULL THEN deadline_at
                           ELSE now() + make_interval(secs => :seconds) END,
        after_drain = coalesce(CAST(:after AS text), after_drain), changed_at = now()
    WHERE node_id = :node_id AND state = ANY (:before)
    RETURNING node_id
), recorded AS (
    INSERT INTO event (kind, subject, state, node_id, detail)
    SELECT 'node', node_id, :state, node_id, concat_ws(', by ', CAST(:reason AS text), CAST(:by AS text)) FROM moved
)
SELECT count(*) FROM moved
""")


def boot_failed(connection: Connection, node_id: str, reason: str) -> None:
    """Write down that a machine's boot has failed before its service could register."""
    connection.execute(
        text("INSERT INTO event (kind, subject, state, node_id, detail) VALUES ('node', :id, 'failed', :id, :reason)"),
        {"id": node_id, "reason": f"boot failed: {reason}"},
    )
    notify(connection)


def register(connection: Connection, info: NodeInfo, *, state: str = "ready") -> str:
    """Write down that this node's service has started; returns the state it is in.

    A new boot id proves that nothing of the earlier start runs any more, so what was leased to it is handed on.
    """
    row = connection.execute(
        _REGISTER,
        {
            "node_id": info.node_id,
            "role": info.role,
            "pool": info.pool,
            "state": state,
            "release": info.release,
            "slots": info.slots,
            "queues": list(info.queues),
            "boot_id": info.boot_id,
            "instance_id": info.instance_id,
            "address": info.address,
        },
    ).one()
    if row.old_boot not in (None, info.boot_id):
        transitions.interrupt_node(connection, info.node_id, "the worker was restarted")
    connection.execute(text(_BEAT), {"node_id": info.node_id})
    notify(connection)
    return str(row.state)


def heartbeat(
    connection: Connection, node_id: str, tokens: Sequence[uuid.UUID] = (), *, lease_seconds: float = 300.0
) -> Orders | None:
    """Say that the node lives, renew the leases of these tokens, and read its orders: one statement that never waits
    for another's lock.

    None if the node is not known (its row was removed): it must register again.
    """
    row = connection.execute(
        _HEARTBEAT,
        {"node_id": node_id, "tokens": [str(t) for t in tokens], "lease": lease_seconds},
    ).one_or_none()
    if row is None:
        return None
    held, renewed, ended = map(frozenset, row[3:6])
    return Orders(row[0], row[1], row[2], held, renewed, ended, row[6])


def cordon(
    connection: Connection, node_id: str, *, reason: str, by: str, deadline_seconds: float, after: str = ""
) -> bool:
    """ready → draining. From the commit on, no claim on this node succeeds. False if it was not ready or booting.

    A node that drains already keeps its first reason and deadline. `after`: what its agent then does with the machine,
    by itself: "" nothing, "terminate" ends it with its place in the group, "replace" lets the group bring another.
    """
    return _move(connection, node_id, "draining", ("booting", "ready"), reason, by, deadline_seconds, after)


def uncordon(connection: Connection, node_id: str, *, by: str) -> bool:
    """draining → ready: the drain is called off. False if the node was not draining."""
    return _move(connection, node_id, "ready", ("draining",), "drain called off", by, None, "")


def drained(connection: Connection, node_id: str) -> bool:
    """draining → drained, if and only if no lease is left on the node. True also if it was drained before."""
    connection.execute(text("SELECT 1 FROM node WHERE node_id = :id FOR UPDATE"), {"id": node_id})
    if running(connection, node_id):
        return False
    _move(connection, node_id, "drained", ("draining",), None, None, None)
    state = connection.execute(text("SELECT state FROM node WHERE node_id = :id"), {"id": node_id}).scalar()
    return state in ("drained", "gone")


_BEATS = text("""
SELECT r.id FROM dag_run r WHERE r.state = 'running' AND r.run_type = 'heartbeat'
  AND EXISTS (SELECT 1 FROM task_instance t WHERE t.run_id = r.id AND t.queue = :queue) ORDER BY r.id
""")


def gone(connection: Connection, node_id: str, *, cause: str) -> int:
    """any → gone: the machine is proven dead. What it was running is handed on; returns how many tasks.

    Heartbeat runs on its own queue, which nobody consumes any more, are ended.
    """
    _move(connection, node_id, "gone", ("booting", "ready", "draining", "drained"), cause, None, None)
    tasks = transitions.interrupt_node(connection, node_id, cause)
    for run in list(connection.execute(_BEATS, {"queue": queue_of(node_id)}).scalars()):
        transitions.end_run(connection, run, why=f"the node is gone: {cause}")
    return tasks


def is_ready(connection: Connection, node_id: str) -> bool:
    """Whether this node may claim tasks."""
    state = connection.execute(text("SELECT state FROM node WHERE node_id = :id"), {"id": node_id}).scalar()
    return bool(state == "ready")


def running(connection: Connection, node_id: str) -> int:
    """Tasks this node holds a lease for."""
    statement = text("SELECT count(*) FROM task_instance WHERE state = 'running' AND node_id = :id")
    n: int = connection.execute(statement, {"id": node_id}).scalar_one()
    return n


def _move(
    connection: Connection,
    node_id: str,
    state: str,
    before: Sequence[str],
    reason: str | None,
    by: str | None,
    seconds: float | None,
    after: str | None = None,
) -> bool:
    values = {
        "node_id": node_id,
        "state": state,
        "before": list(before),
        "reason": reason,
        "by": by,
        "seconds": seconds,
        "after": after,
    }
    moved: bool = connection.execute(_MOVE, values).scalar_one() > 0
    if moved:
        notify(connection)
    return moved
