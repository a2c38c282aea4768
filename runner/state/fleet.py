"""Reading the fleet: one row per node, with its age, its heartbeat's age and what it runs, in seconds and counts.

Ages are measured by the database's clock, so they hold on a machine whose own clock is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True)
class NodeView:
    """A node as the database sees it. `heartbeat_age` is None before the first heartbeat, in seconds after."""

    node_id: str
    role: str
    pool: str
    state: str
    release: str
    slots: int
    queues: tuple[str, ...]
    running: int
    heartbeat_age: float | None
    age: float
    changed: float
    reason: str | None
    requested_by: str | None
    seconds_left: float | None
    instance_id: str
    address: str
    boot_id: str

    def fresh(self, seconds: float = 15.0) -> bool:
        """Whether the node was heard within this time."""
        return self.heartbeat_age is not None and self.heartbeat_age <= seconds


_NODES = """
SELECT n.node_id, n.role, n.pool, n.state, n.release, n.slots, n.queues,
       (SELECT count(*) FROM task_instance t WHERE t.state = 'running' AND t.node_id = n.node_id) AS running,
       extract(epoch FROM clock_timestamp() - h.at)::float AS heartbeat_age,
       extract(epoch FROM clock_timestamp() - n.registered_at)::float AS age,
       extract(epoch FROM clock_timestamp() - n.changed_at)::float AS changed,
       n.reason, n.requested_by, extract(epoch FROM n.deadline_at - clock_timestamp())::float AS seconds_left,
       n.instance_id, n.address, n.boot_id
FROM node n LEFT JOIN node_heartbeat h USING (node_id)
"""
_ONE = text(_NODES + "WHERE n.node_id = :node_id")
_LIVE = text(
    _NODES
    + """
WHERE (n.state <> 'gone' OR :gone) AND (CAST(:role AS text) IS NULL OR n.role = :role)
  AND (CAST(:pools AS text[]) IS NULL OR n.pool = ANY (:pools))
ORDER BY n.role, n.pool, n.registered_at, n.node_id
"""
)


def node(connection: Connection, node_id: str) -> NodeView | None:
    """One node, None if it never registered."""
    row = connection.execute(_ONE, {"node_id": node_id}).one_or_none()
    return _view(row) if row else None


def nodes(
    connection: Connection, *, role: str | None = None, pools: Sequence[str] | None = None, gone: bool = False
) -> list[NodeView]:
    """The nodes of a role and of these pools, oldest first; those that are gone only if asked for."""
    values = {"role": role, "pools": list(pools) if pools is not None else None, "gone": gone}
    return [_view(row) for row in connection.execute(_LIVE, values)]


def _view(row: object) -> NodeView:
    values = dict(row._mapping)  # type: ignore[attr-defined]
    return NodeView(**{**values, "queues": tuple(values["queues"])})
