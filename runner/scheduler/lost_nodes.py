"""Duty: ask the cloud about nodes that are not heard any more: a dead machine's tasks need not wait for a lease."""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog
from sqlalchemy import Engine, text

from runner.state import nodes

log = structlog.get_logger(__name__)

SILENT_SECONDS = 15.0

_SILENT = text("""
SELECT n.node_id, n.instance_id FROM node n JOIN node_heartbeat h USING (node_id)
WHERE n.state <> 'gone' AND n.instance_id <> '' AND h.at < now() - make_interval(secs => :silent)
ORDER BY n.node_id LIMIT 200
""")


def hand_on(engine: Engine, existing: Callable[[list[str]], Collection[str]]) -> int:
    """Declare gone the silent nodes whose instance is no more, and hand on what they ran; returns how many nodes.

    `existing` says which of these instances still exist in any state but shutting-down and terminated. A node that
    is only silent keeps its leases: it may live on the other side of a partition.
    """
    with engine.begin() as connection:
        silent = {row.node_id: row.instance_id for row in connection.execute(_SILENT, {"silent": SILENT_SECONDS})}
    if not silent:
        return 0
    alive = existing(sorted(silent.values()))
    dead = [node_id for node_id, instance in silent.items() if instance not in alive]
    for node_id in dead:
        with engine.begin() as connection:
            tasks = nodes.gone(connection, node_id, cause="its instance was terminated")
        log.warning("node is gone", action="lost_nodes", node=node_id, tasks=tasks)
    return len(dead)
