"""Which bundle version each DAG runs: registering a version and making it the active one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from runner.authoring.spec import DagSpec
from runner.settings import UsageError
from runner.state.transitions import notify

_BUNDLE = text("""
INSERT INTO bundle (version, name, url, size, created_by) VALUES (:version, :name, :url, :size, :who)
ON CONFLICT (version) DO NOTHING
""")
_VERSION = text("""
INSERT INTO dag_version (dag_id, bundle_version, spec)
SELECT d.dag_id, :version, d.spec FROM jsonb_to_recordset(CAST(:dags AS jsonb)) AS d(dag_id text, spec jsonb)
ON CONFLICT DO NOTHING
""")
_TASKS = text("""
INSERT INTO dag_task (dag_id, bundle_version, task_id, queue, priority, max_tries, retry_delay_seconds,
                      timeout_seconds, trigger_rule, inputs, upstream_total, leaf)
SELECT t.dag_id, :version, t.task_id, t.queue, t.priority, t.max_tries, t.retry_delay_seconds, t.timeout_seconds,
       t.trigger_rule, ARRAY(SELECT jsonb_array_elements_text(t.inputs)), t.upstream_total, t.leaf
FROM jsonb_to_recordset(CAST(:tasks AS jsonb)) AS t(
    dag_id text, task_id text, queue text, priority int, max_tries int, retry_delay_seconds float,
    timeout_seconds float, trigger_rule text, inputs jsonb, upstream_total int, leaf boolean)
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
INSERT INTO dag (dag_id, bundle, bundle_version, schedule)
SELECT v.dag_id, :name, v.bundle_version, coalesce(v.spec #>> '{schedule,text}', v.spec ->> 'schedule')
FROM dag_version v
WHERE v.bundle_version = :version
ON CONFLICT (dag_id) DO UPDATE SET
    bundle = excluded.bundle, bundle_version = excluded.bundle_version, schedule = excluded.schedule, active = true,
    -- another schedule starts from now; the same one goes on where it was
    next_run_at = CASE WHEN EXISTS (
        SELECT 1 FROM dag_version o, dag_version n
        WHERE o.dag_id = dag.dag_id AND o.bundle_version = dag.bundle_version
          AND n.dag_id = dag.dag_id AND n.bundle_version = excluded.bundle_version
          AND o.spec -> 'schedule' IS NOT DISTINCT FROM n.spec -> 'schedule'
          AND o.spec -> 'timezone' IS NOT DISTINCT FROM n.spec -> 'timezone') THEN dag.next_run_at END,
    updated_at = now()
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
    tasks, edges = [], []
    for spec in specs:
        has_downstream = {up for t in spec.tasks for up in t.upstream}
        for t in spec.tasks:
            tasks.append(
                {
                    "dag_id": spec.dag_id,
                    "task_id": t.task_id,
                    "queue": t.queue,
                    "priority": t.priority,
                    "max_tries": t.retries + 1,
                    "retry_delay_seconds": t.retry_delay_seconds,
                    "timeout_seconds": t.timeout_seconds,
                    "trigger_rule": t.trigger_rule,
                    "inputs": list(t.inputs),
                    "upstream_total": len(t.upstream),
                    "leaf": t.task_id not in has_downstream,
                }
            )
            edges += [{"dag_id": spec.dag_id, "upstream": up, "downstream": t.task_id} for up in t.upstream]
    connection.execute(_VERSION, {"version": version, "dags": json.dumps(dags)})
    connection.execute(_TASKS, {"version": version, "tasks": json.dumps(tasks)})
    connection.execute(_EDGES, {"version": version, "edges": json.dumps(edges)})
    before = active_version(connection, name)
    connection.execute(_ACTIVATE, {"version": version, "name": name})
    connection.execute(_RETIRE, {"version": version, "name": name})
    connection.execute(_HISTORY, {"name": name, "before": before, "version": version, "who": who})
    notify(connection)


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
