"""Updates of assets: recorded with the commit that ends the task, and kept for each DAG that waits for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runner.state.transitions.records import notify

# A DAG that is paused waits for nothing. Each DAG keeps the events it has not used yet, so none is used twice and none
# that commits late is missed.
_KEEP = """, kept AS (
    INSERT INTO asset_pending (dag_id, event_id, asset)
    SELECT d.dag_id, u.id, u.asset FROM updated u JOIN dag d ON d.assets @> ARRAY[u.asset]
    WHERE d.active AND NOT d.paused
    RETURNING dag_id
)
SELECT (SELECT count(*) FROM updated) AS updated, (SELECT count(*) FROM kept) AS kept
"""
_BY_TASKS = text(f"""
WITH updated AS (
    INSERT INTO asset_event (asset, dag_id, run_id, task_id)
    SELECT o.asset, t.dag_id, t.run_id, t.task_id
    FROM task_instance t JOIN dag_task d USING (dag_id, bundle_version, task_id), unnest(d.outlets) AS o(asset)
    WHERE t.id = ANY (:ids) ORDER BY t.id
    RETURNING id, asset
){_KEEP}""")
_FROM_OUTSIDE = text(f"""
WITH updated AS (
    INSERT INTO asset_event (asset, extra, who) VALUES (:asset, CAST(:extra AS jsonb), :who) RETURNING id, asset
){_KEEP}""")


def updated_by_tasks(connection: Connection, ids: Sequence[int]) -> int:
    """Record that these task instances have updated their outlets; returns the number of events."""
    row = connection.execute(_BY_TASKS, {"ids": list(ids)}).one()
    if row.kept:
        notify(connection)
    return int(row.updated)


def updated_from_outside(connection: Connection, asset: str, *, extra: dict[str, Any], who: str) -> int:
    """Record that something else has updated an asset; returns how many DAGs wait for it."""
    row = connection.execute(_FROM_OUTSIDE, {"asset": asset, "extra": json.dumps(extra), "who": who}).one()
    if row.kept:
        notify(connection)
    return int(row.kept)
