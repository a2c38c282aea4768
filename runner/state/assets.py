"""Assets: what is known of them, updates from outside, and the DAGs that have what they wait for."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runner.authoring.assets import holds
from runner.settings import UsageError
from runner.state import transitions

TRIGGERS_MAX = 1000  # events that a run lists

_EVENT = """jsonb_build_object('asset', e.asset, 'at', e.at, 'dag_id', e.dag_id, 'run_id', e.run_id,
    'task_id', e.task_id, 'extra', e.extra)"""
_FIRST = text(f"""
SELECT w.id, (SELECT {_EVENT} FROM asset_event e WHERE e.asset = w.asset AND e.at >= w.since ORDER BY e.at LIMIT 1)
    AS event
FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS w(id bigint, asset text, since timestamptz)
""")


def first_since(connection: Connection, wanted: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The first event of each {"id", "asset", "since"}, for those that have one."""
    rows = connection.execute(_FIRST, {"wanted": json.dumps(list(wanted))})
    return {row.id: row.event for row in rows if row.event is not None}


_KNOWN = text("""
SELECT EXISTS (SELECT 1 FROM dag WHERE active AND assets @> ARRAY[:asset])
    OR EXISTS (SELECT 1 FROM dag_task t JOIN dag d USING (dag_id, bundle_version)
               WHERE d.active AND t.outlets <> '{}' AND :asset = ANY (t.outlets))
""")


def update(connection: Connection, asset: str, *, extra: dict[str, Any] | None = None, who: str) -> int:
    """Record an update that no task has made; returns how many DAGs wait for it. Raises UsageError for one nobody
    knows."""
    if not connection.execute(_KNOWN, {"asset": asset}).scalar_one():
        raise UsageError(f"no DAG uses an asset {asset!r}", "`runner asset list` shows what there is")
    return transitions.updated_from_outside(connection, asset, extra=extra or {}, who=who)


@dataclass(frozen=True)
class AssetRow:
    """An asset, the DAGs that update and use it, and its last update."""

    asset: str
    made_by: list[str]
    used_by: list[str]
    updated_at: dt.datetime | None


_ALL = text("""
WITH made AS (
    SELECT o.asset, d.dag_id FROM dag d JOIN dag_task t USING (dag_id, bundle_version), unnest(t.outlets) AS o(asset)
    WHERE d.active AND t.outlets <> '{}'
), used AS (
    SELECT u.asset, d.dag_id FROM dag d, unnest(d.assets) AS u(asset) WHERE d.active
)
SELECT a.asset, ARRAY(SELECT DISTINCT dag_id FROM made WHERE made.asset = a.asset ORDER BY 1) AS made_by,
       ARRAY(SELECT DISTINCT dag_id FROM used WHERE used.asset = a.asset ORDER BY 1) AS used_by,
       (SELECT e.at FROM asset_event e WHERE e.asset = a.asset ORDER BY e.at DESC LIMIT 1) AS updated_at
FROM (SELECT asset FROM made UNION SELECT asset FROM used) a ORDER BY a.asset
""")


def known(connection: Connection) -> list[AssetRow]:
    """All assets of active DAGs, by name."""
    return [AssetRow(*row) for row in connection.execute(_ALL)]


# The DAG's row is locked, so its events are used by one scheduler. The lock lets go through what adds more of them.
_NEXT = text("""
SELECT d.dag_id, v.spec -> 'assets' AS condition FROM dag d JOIN dag_version v USING (dag_id, bundle_version)
WHERE d.active AND NOT d.paused AND EXISTS (SELECT 1 FROM asset_pending p WHERE p.dag_id = d.dag_id AND NOT p.seen)
ORDER BY d.dag_id LIMIT 1 FOR NO KEY UPDATE OF d SKIP LOCKED
""")
_PENDING = text(f"""
SELECT p.event_id, p.asset, e.at, {_EVENT} AS event FROM asset_pending p JOIN asset_event e ON e.id = p.event_id
WHERE p.dag_id = :dag_id ORDER BY p.event_id
""")
_SEEN = text("UPDATE asset_pending SET seen = true WHERE dag_id = :dag_id AND event_id = ANY (:ids) AND NOT seen")
_USED = text("DELETE FROM asset_pending WHERE dag_id = :dag_id AND event_id = ANY (:ids)")


def create_runs(connection: Connection) -> int:
    """Look at one DAG for which assets were updated, and create its run if it has all it waits for.

    The run's logical date is the time of the last event, its interval reaches back to the first. Returns the number
    of DAGs looked at; call again while it is not 0.
    """
    dag = connection.execute(_NEXT).one_or_none()
    if dag is None:
        return 0
    rows = connection.execute(_PENDING, {"dag_id": dag.dag_id}).all()
    ids = {"dag_id": dag.dag_id, "ids": [row.event_id for row in rows]}
    if not dag.condition or not holds(dag.condition, {row.asset for row in rows}):
        connection.execute(_SEEN if dag.condition else _USED, ids)
        return 1
    first, last = min(row.at for row in rows), max(row.at for row in rows)
    run = None
    while run is None:  # a run of this very instant may exist already
        run = transitions.create_run(
            connection,
            dag.dag_id,
            last,
            interval=(first, last),
            run_type="asset",
            triggers=[row.event for row in rows[-TRIGGERS_MAX:]],
        )
        last += dt.timedelta(microseconds=1)
    connection.execute(_USED, ids)
    return 1
