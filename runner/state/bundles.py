"""Which bundle version each DAG runs: registering a version and making it the active one."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from runner.authoring.spec import DagSpec
from runner.settings import RefusedError, UsageError
from runner.state.transitions import notify

_BUNDLE = text("""
INSERT INTO bundle (version, name, url, size, sha256, created_by)
VALUES (:version, :name, :url, :size, :sha256, :who)
ON CONFLICT (version) DO UPDATE SET name = excluded.name, sha256 = excluded.sha256  -- its directory was renamed
""")
_VERSION = text("""
INSERT INTO dag_version (dag_id, bundle_version, spec, notify, run_timeout_seconds, callbacks)
SELECT d.dag_id, :version, d.spec, coalesce(d.spec -> 'notify', '[]'), CAST(d.spec ->> 'run_timeout_seconds' AS float),
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
    "notify": "jsonb",
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
SELECT v.dag_id, :name, v.bundle_version, coalesce(v.spec #>> '{schedule,text}', v.spec ->> 'schedule'),
       CAST(v.spec ->> 'max_active_runs' AS int), CAST(v.spec ->> 'max_active_tasks' AS int)
FROM dag_version v WHERE v.bundle_version = :version
ON CONFLICT (dag_id) DO UPDATE SET
    bundle = excluded.bundle, bundle_version = excluded.bundle_version, schedule = excluded.schedule, active = true,
    max_active_runs = excluded.max_active_runs, max_active_tasks = excluded.max_active_tasks,
    -- another schedule starts from now; the same one goes on where it was
    next_run_at = CASE WHEN EXISTS (
        SELECT 1 FROM dag_version o, dag_version n
        WHERE o.dag_id = dag.dag_id AND o.bundle_version = dag.bundle_version
          AND n.dag_id = dag.dag_id AND n.bundle_version = excluded.bundle_version
          AND o.spec -> 'schedule' IS NOT DISTINCT FROM n.spec -> 'schedule'
          AND o.spec -> 'timezone' IS NOT DISTINCT FROM n.spec -> 'timezone') THEN dag.next_run_at END,
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
# What runs at that moment is kept with it, so that the history can say what became of it: [run, instance, attempt].
_HISTORY = text("""
INSERT INTO deploy (kind, target, before, after, who, detail)
SELECT 'code', :name, CAST(:before AS text), :version, :who, jsonb_build_object('action', CAST(:action AS text),
    'in_flight', (SELECT coalesce(jsonb_agg(jsonb_build_array(run_id, id, attempt)), '[]')
                  FROM (SELECT run_id, id, attempt FROM task_instance WHERE state = 'running' LIMIT 10000) running))
WHERE CAST(:before AS text) IS DISTINCT FROM :version
""")
_BUNDLES = """
SELECT b.version, b.name, b.url, b.size, b.sha256, b.created_at, b.created_by,
       EXISTS (SELECT 1 FROM dag d WHERE d.bundle = b.name AND d.bundle_version = b.version AND d.active) AS active,
       (SELECT count(*) FROM dag_version v WHERE v.bundle_version = b.version) AS dags
FROM bundle b
"""
# What a push replaced, and not what a rollback left: a second rollback goes one version further back.
_PREVIOUS = text("""
SELECT before FROM deploy
WHERE kind = 'code' AND target = :name AND after = :version AND detail ->> 'action' IS DISTINCT FROM 'rollback'
ORDER BY id DESC LIMIT 1
""")
_DEPLOYS = text("""
SELECT id, at, target, before, after, who, detail ->> 'action' AS action FROM deploy
WHERE kind = 'code' AND target = coalesce(CAST(:name AS text), target) ORDER BY id DESC LIMIT :limit
""")


@dataclass(frozen=True)
class BundleRow:
    """A published version. `size` in bytes is of its archive, `sha256` of the tar in it."""

    version: str
    name: str
    url: str
    size: int
    sha256: str
    created_at: dt.datetime
    created_by: str
    active: bool
    dags: int


@dataclass(frozen=True)
class DeployRow:
    """A line of the deploy history of pipeline code. `action` is push or rollback."""

    id: int
    at: dt.datetime
    bundle: str
    before: str | None
    after: str | None
    who: str
    action: str


def register_and_activate(
    connection: Connection,
    *,
    version: str,
    name: str,
    url: str,
    size: int,
    specs: Sequence[DagSpec],
    who: str,
    sha256: str = "",
) -> None:
    """Store a bundle version with its DAGs and make it the active version of the bundle `name`.

    New runs take it from the commit on; runs under way keep theirs. `sha256` is of the unpacked archive, checked by
    every node before it is loaded. Raises UsageError if a DAG id belongs to another bundle.
    """
    _one_at_a_time(connection, name)
    check_free(connection, name, [s.dag_id for s in specs])
    values = {"version": version, "name": name, "url": url, "size": size, "sha256": sha256, "who": who}
    connection.execute(_BUNDLE, values)
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
    _activate(connection, name, version, who, "push")


def rollback(connection: Connection, name: str, *, to: str | None = None, who: str) -> tuple[str, str]:
    """Make an earlier version of a bundle the active one: the same switch as a push. Returns (before, after).

    Without `to` it is the version that the active one replaced when it was pushed. Raises UsageError for a bundle
    or a version that is not known, RefusedError if there is nothing to go back to.
    """
    _one_at_a_time(connection, name)
    before = active_version(connection, name)
    if before is None:
        raise _unknown(connection, name)
    after = to or connection.execute(_PREVIOUS, {"name": name, "version": before}).scalar()
    if after is None:
        raise RefusedError(
            f"bundle {name} has no version before {before}", f"`deployctl dags history {name}` shows what was active"
        )
    row = find(connection, after)
    if row.name != name:
        raise UsageError(f"{after} is a version of bundle {row.name}, not of {name}")
    ids = connection.execute(text("SELECT dag_id FROM dag_version WHERE bundle_version = :v"), {"v": row.version})
    check_free(connection, name, list(ids.scalars()))
    _activate(connection, name, row.version, who, "rollback")
    return before, row.version


def _one_at_a_time(connection: Connection, name: str) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:k, 0))"), {"k": f"bundle {name}"})


def check_free(connection: Connection, name: str, dag_ids: Sequence[str]) -> None:
    """Raise UsageError if one of these DAGs belongs to a bundle of another name."""
    foreign = connection.execute(_FOREIGN, {"ids": list(dag_ids), "name": name}).one_or_none()
    if foreign:
        raise UsageError(
            f"DAG {foreign.dag_id!r} belongs to bundle {foreign.bundle!r} already",
            "rename one of the two DAGs",
        )


def _activate(connection: Connection, name: str, version: str, who: str, action: str) -> None:
    before = active_version(connection, name)
    connection.execute(_ACTIVATE, {"version": version, "name": name})
    connection.execute(_ASSETS, {"version": version})
    connection.execute(_RETIRE, {"version": version, "name": name})
    connection.execute(_HISTORY, {"name": name, "before": before, "version": version, "who": who, "action": action})
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


def active(connection: Connection) -> dict[str, str]:
    """Bundle name → the version that new runs take, of every bundle that has one and comes from storage."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT d.bundle, d.bundle_version FROM dag d JOIN bundle b ON b.version = d.bundle_version "
            "WHERE d.active AND b.url <> '' ORDER BY d.bundle"
        )
    )
    return {row.bundle: row.bundle_version for row in rows}


def previous(connection: Connection, name: str, version: str) -> str | None:
    """The version of a bundle that this one replaced when it was pushed."""
    found: str | None = connection.execute(_PREVIOUS, {"name": name, "version": version}).scalar()
    return found


def find(connection: Connection, version: str) -> BundleRow:
    """A version by its id, or by the beginning of it. Raises UsageError unless there is exactly one."""
    rows = connection.execute(
        text(_BUNDLES + "WHERE b.version = :v OR b.version LIKE :prefix ORDER BY b.version <> :v LIMIT 2"),
        {"v": version, "prefix": f"{version}%" if version.isalnum() else ""},
    ).all()
    if not rows:
        raise UsageError(f"no bundle version {version!r}", "`deployctl dags history` lists what was published")
    if len(rows) > 1 and rows[0].version != version:
        raise UsageError(f"more than one bundle version begins with {version!r}", "write more of it")
    return BundleRow(*rows[0])


def versions(connection: Connection, name: str, limit: int = 20) -> list[BundleRow]:
    """The published versions of a bundle, newest first. Raises UsageError for a bundle that is not known."""
    rows = connection.execute(
        text(_BUNDLES + "WHERE b.name = :name ORDER BY b.created_at DESC, b.version LIMIT :limit"),
        {"name": name, "limit": limit},
    ).all()
    if not rows:
        raise _unknown(connection, name)
    return [BundleRow(*r) for r in rows]


def specs(connection: Connection, version: str) -> list[DagSpec]:
    """The DAGs of a version, by id."""
    rows: Sequence[Any] = (
        connection.execute(
            text("SELECT spec FROM dag_version WHERE bundle_version = :v ORDER BY dag_id"), {"v": version}
        )
        .scalars()
        .all()
    )
    return [DagSpec.from_json(r) for r in rows]


def history(connection: Connection, name: str | None = None, limit: int = 20) -> list[DeployRow]:
    """Which version was active when, newest first; of one bundle or of all."""
    return [DeployRow(*r) for r in connection.execute(_DEPLOYS, {"name": name, "limit": limit})]


def deployed_since(connection: Connection, deploy: int, limit: int = 3) -> list[str]:
    """The versions that became active after this line of the history, newest first."""
    rows = connection.execute(
        text("SELECT after FROM deploy WHERE kind = 'code' AND id > :id ORDER BY id DESC LIMIT :limit"),
        {"id": deploy, "limit": limit},
    )
    return list(dict.fromkeys(rows.scalars()))


def known(connection: Connection) -> tuple[set[str], set[str]]:
    """Names of the connections and of the pools that this environment has, for what a bundle's tasks say they need."""
    names = [connection.execute(text(f"SELECT name FROM {table}")).scalars() for table in ("connection", "pool")]
    return set(names[0]), set(names[1])


def _unknown(connection: Connection, name: str) -> UsageError:
    known = ", ".join(active(connection)) or "none yet; `deployctl dags push DIR` publishes one"
    return UsageError(f"no bundle {name!r}", f"known: {known}")
