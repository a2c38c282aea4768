"""Which bundle version each DAG runs: registering a version and making it the active one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runner.authoring.spec import DagSpec
from runner.settings import UsageError
from runner.state.transitions import notify

_BUNDLE = text("""
INSERT INTO bundle (version, name, url, size, created_by) VALUES (:version, :name, :url, :size, :who)
ON CONFLICT (version) DO NOTHING
""")
_VERSION = text("""
INSERT INTO dag_version (dag_id, bundle_version, spec, run_timeout_seconds, callbacks)
SELECT d.dag_id, :version, d.spec, CAST(d.spec ->> 'run_timeout_seconds' AS float),
       ARRAY(SELECT c ->> 'task_id' FROM jsonb_array_elements(d.spec -> 'callbacks') AS c)
FROM jsonb_to_recordset(CAST(:dags AS jsonb)) AS d(dag_id text, spec jsonb)
ON CONFLICT DO NOTHING
""")
_TASK_COLUMNS = {
    "kind": "text",
    "queue": "text",
    "priority": "int",
    "max_tries": "int",
    "retry_delay_seconds": "float",
    "retry_backoff": "float",
    "retry_max_delay_seconds": "float",
    "retry_jitter": "float",
    "timeout_seconds": "float",
    "trigger_rule": "text",
    "inputs": "text[]",
    "map_over": "jsonb",
    "sensor": "jsonb",
    "pool": "text",
    "pool_slots": "int",
    "max_active": "int",
    "depends_on_past": "boolean",
    "setup": "boolean",
    "on_lost": "text",
    "execution": "jsonb",
    "outlets": "text[]",
    "upstream_total": "int",
    "leaf": "boolean",
}
_TASKS = text(f"""
INSERT INTO dag_task (dag_id, bundle_version, task_id, {", ".join(_TASK_COLUMNS)})
SELECT t.dag_id, :version, t.task_id, {", ".join(f"t.{name}" for name in _TASK_COLUMNS)}
FROM jsonb_to_recordset(CAST(:tasks AS jsonb)) AS t(
    dag_id text, task_id text, {", ".join(f"{name} {kind}" for name, kind in _TASK_COLUMNS.items())})
ON CONFLICT DO NOTHING
""")
_EDGES = text("""
INSERT INTO dag_edge (dag_id, bundle_version, upstream, downstream)
SELECT e.dag_id, :version, e.upstream, e.downstream
FROM jsonb_to_recordset(CAST(:edges AS jsonb)) AS e(dag_id text, upstream text, downstream text)
ON CONFLICT DO NOTHING
""")
_FOREIGN = text("""
SELECT dag_id, bundle FROM dag WHERE dag_id = ANY (:ids) AND bundle <> :name AND active ORDER BY dag_id LIMIT 1
""")
_ACTIVATE = text("""
INSERT INTO dag (dag_id, bundle, bundle_version, schedule, max_active_runs, max_active_tasks)
SELECT v.dag_id, :name, v.bundle_version, v.spec ->> 'schedule', CAST(v.spec ->> 'max_active_runs' AS int),
       CAST(v.spec ->> 'max_active_tasks' AS int)
FROM dag_version v WHERE v.bundle_version = :version
ON CONFLICT (dag_id) DO UPDATE SET
    bundle = excluded.bundle, bundle_version = excluded.bundle_version, schedule = excluded.schedule, active = true,
    max_active_runs = excluded.max_active_runs, max_active_tasks = excluded.max_active_tasks,
    -- another schedule starts from now; the same one goes on where it was
    next_run_at = CASE WHEN dag.schedule IS DISTINCT FROM excluded.schedule THEN NULL ELSE dag.next_run_at END,
    updated_at = now()
""")
_ASSETS = text("""
UPDATE dag d SET assets = found.assets
FROM (SELECT v.dag_id, ARRAY(SELECT DISTINCT name #>> '{}' FROM jsonb_path_query(v.spec, 'strict $.assets.**.asset',
                                                                       silent => true) AS name) AS assets
      FROM dag_version v WHERE v.bundle_version = :version) found
WHERE d.dag_id = found.dag_id AND d.assets IS DISTINCT FROM found.assets
""")
_RETIRE = text("""
UPDATE dag SET active = false, updated_at = now()
WHERE bundle = :name AND bundle_version <> :version AND active
""")
_HISTORY = text("""
INSERT INTO deploy (kind, target, before, after, who)
SELECT 'code', :name, CAST(:before AS text), :version, :who WHERE CAST(:before AS text) IS DISTINCT FROM :version
""")


def register_and_activate(
    connection: Connection,
    *,
    version: str,
    name: str,
    url: str,
    size: int,
    specs: Sequence[DagSpec],
    who: str,
) -> None:
    """Store a bundle version with its DAGs and make it the active version of the bundle `name`.

    New runs take it from the commit on; runs under way keep theirs. Raises UsageError if a DAG id belongs to another
    bundle.
    """
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:k, 0))"), {"k": f"bundle {name}"})
    foreign = connection.execute(_FOREIGN, {"ids": [s.dag_id for s in specs], "name": name}).one_or_none()
    if foreign:
        raise UsageError(
            f"DAG {foreign.dag_id!r} belongs to bundle {foreign.bundle!r} already",
            "rename one of the two DAGs",
        )
    connection.execute(_BUNDLE, {"version": version, "name": name, "url": url, "size": size, "who": who})
    dags = [{"dag_id": s.dag_id, "spec": s.to_json()} for s in specs]
    tasks = [row for s in specs for row in _task_rows(s)]
    edges = [
        {"dag_id": s.dag_id, "upstream": before, "downstream": t.task_id}
        for s in specs
        for t in s.tasks
        for before in t.upstream
    ]
    connection.execute(_VERSION, {"version": version, "dags": json.dumps(dags)})
    connection.execute(_TASKS, {"version": version, "tasks": json.dumps(tasks)})
    connection.execute(_EDGES, {"version": version, "edges": json.dumps(edges)})
    before = active_version(connection, name)
    connection.execute(_ACTIVATE, {"version": version, "name": name})
    connection.execute(_ASSETS, {"version": version})
    connection.execute(_RETIRE, {"version": version, "name": name})
    connection.execute(_HISTORY, {"name": name, "before": before, "version": version, "who": who})
    notify(connection)


def _task_rows(spec: DagSpec) -> list[dict[str, Any]]:
    """The rows of dag_task. What a run's outcome depends on are its leaves: what only a teardown follows is one."""
    teardowns = {t.task_id for t in spec.tasks if t.teardown}
    followed = {before for t in spec.tasks if t.task_id not in teardowns for before in t.upstream}
    rows = []
    for t in (*spec.tasks, *spec.callbacks):
        row = {name: getattr(t, name) for name in _TASK_COLUMNS if hasattr(t, name)}
        rows.append(
            {
                **row,
                "dag_id": spec.dag_id,
                "task_id": t.task_id,
                "max_tries": t.retries + 1,
                "upstream_total": len(t.upstream),
                "leaf": t.kind != "callback" and t.task_id not in followed | teardowns,
            }
        )
    return rows


def active_version(connection: Connection, name: str) -> str | None:
    """The version of a bundle that new runs take, None before the first."""
    version: str | None = connection.execute(
        text("SELECT bundle_version FROM dag WHERE bundle = :name AND active LIMIT 1"), {"name": name}
    ).scalar()
    return version


def location(connection: Connection, version: str) -> str:
    """The URL of a bundle version's archive. Raises UsageError for an unknown version."""
    url: str | None = connection.execute(text("SELECT url FROM bundle WHERE version = :v"), {"v": version}).scalar()
    if url is None:
        raise UsageError(f"no bundle version {version!r}", "`deployctl dags push DIR` publishes one")
    return url
