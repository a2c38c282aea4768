"""What people (and a run's deadline) change: clear, mark, kill, end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, text

from runner.settings import RefusedError, UsageError
from runner.state.transitions.admit import admit
from runner.state.transitions.propagate import Effect, lock_runs, settle
from runner.state.transitions.records import notify
from runner.state.transitions.rules import FINISHED

Mark = Literal["success", "failed", "skipped"]
_ORDER = {"success": "succeed", "failed": "fail", "skipped": "skip"}

_RUN = text("SELECT dag_id, bundle_version, state FROM dag_run WHERE id = :run")
_EDGES = text("""
SELECT e.upstream, e.downstream FROM dag_edge e JOIN dag_run r USING (dag_id, bundle_version) WHERE r.id = :run
""")
_ROLES = text("""
SELECT t.task_id, t.setup, t.trigger_rule = 'teardown' AS teardown FROM dag_task t
JOIN dag_run r USING (dag_id, bundle_version) WHERE r.id = :run
""")
_INSTANCES = text("""
SELECT id, task_id, map_index, kind, state FROM task_instance WHERE run_id = :run AND kind <> 'callback' ORDER BY id
""")

_RESET = text("""
WITH target AS (
    SELECT id, state AS before FROM task_instance WHERE id = ANY (:ids) AND state <> 'running'
), reset AS (
    UPDATE task_instance t SET
        state = CASE WHEN t.id = ANY (:items) THEN 'ready' WHEN t.id = ANY (:expanded) THEN 'expanded'
                ELSE 'waiting' END,
        map_lengths = CASE WHEN t.id = ANY (:expanded) THEN map_lengths END,
        ready_at = now(), admitted = NOT limited, tries = 0, interruptions = 0, available_at = NULL, ordered = NULL,
        started_at = NULL, ended_at = NULL, error = NULL, node_id = NULL
    FROM target WHERE t.id = target.id
    RETURNING t.id, t.state, t.run_id, t.task_id, t.map_index, t.limited, target.before
), ordered AS (
    UPDATE task_instance SET ordered = 'restart', error = :why WHERE id = ANY (:ids) AND state = 'running'
    RETURNING id
), forgotten AS (
    DELETE FROM xcom x USING reset r
    WHERE x.run_id = r.run_id AND x.task_id = r.task_id AND x.map_index = r.map_index
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail)
    SELECT 'task', id::text, state, run_id, :why FROM reset WHERE state <> before
)
SELECT (SELECT count(*) FROM reset) + (SELECT count(*) FROM ordered) AS n,
       (SELECT count(*) FROM reset WHERE state = 'ready' AND NOT limited) AS ready,
       EXISTS (SELECT 1 FROM reset WHERE state = 'ready' AND limited) AS limited
""")
_DROP_ITEMS = text("""
WITH dropped AS (
    DELETE FROM task_instance WHERE run_id = :run AND task_id = ANY (:tasks) AND map_index >= 0
    RETURNING run_id, task_id, map_index
)
DELETE FROM xcom x USING dropped d
WHERE x.run_id = d.run_id AND x.task_id = d.task_id AND x.map_index = d.map_index
""")


def clear(
    connection: Connection,
    run_id: int,
    tasks: Sequence[str] | None = None,
    *,
    upstream: bool = False,
    downstream: bool = True,
    only_failed: bool = False,
    by: str,
) -> int:
    """Run these tasks of a run again (all of it without a list); returns how many task instances.

    `load[2]` names one item of a mapped task. What is downstream runs again too unless told otherwise, and so do the
    setup and teardown tasks around. A running task is ended first. `only_failed` keeps what has succeeded. Raises
    UsageError for an unknown run or task, RefusedError if items run of a task whose list is to be made anew.
    """
    run = _locked(connection, run_id)
    if run.state == "queued":
        raise RefusedError(f"run {run_id} has not started yet", "nothing of it can be cleared")
    rows = connection.execute(_INSTANCES, {"run": run_id}).all()
    by_task: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        by_task[row.task_id].append(row)
    names, single = _named(tasks, by_task, run_id)
    edges = [(e.upstream, e.downstream) for e in connection.execute(_EDGES, {"run": run_id})]
    after = _reach(edges, names) if downstream else set()
    before = _reach([(b, a) for a, b in edges], names) if upstream else set()
    chosen = names | after | before
    if only_failed:
        bad = {r.task_id for r in rows if r.state in ("failed", "upstream_failed")}
        chosen &= bad
    chosen |= _around(connection, run_id, edges, chosen)
    backwards = [(b, a) for a, b in edges]
    mapped_again = {t for t in chosen if _is_mapped(by_task[t]) and _reach(backwards, {t}) & chosen}
    running = [r for t in mapped_again for r in by_task[t] if r.map_index >= 0 and r.state == "running"]
    if running:
        raise RefusedError(
            f"{len(running)} items of {running[0].task_id!r} are running, and their list is to be made anew",
            "kill them or wait for them, then clear again",
        )
    ids, items, expanded = [], [], []
    for task in chosen:
        for row in by_task[task]:
            if row.map_index >= 0:
                if task in mapped_again or not _wants_item(row, single.get(task), only_failed):
                    continue
                items.append(row.id)
            elif row.kind == "mapped" and task not in mapped_again and len(by_task[task]) > 1:
                expanded.append(row.id)
            ids.append(row.id)
    if mapped_again:
        connection.execute(_DROP_ITEMS, {"run": run_id, "tasks": sorted(mapped_again)})
    values = {"ids": ids, "items": items, "expanded": expanded, "why": f"cleared by {by}"}
    row = connection.execute(_RESET, values).one()
    effect = settle(connection, run_id)
    _wake(connection, effect, limited=row.limited)
    return int(row.n)


def _wants_item(row: Any, wanted: set[int] | None, only_failed: bool) -> bool:
    if wanted is not None and row.map_index not in wanted:
        return False
    return not only_failed or row.state == "failed"


def _is_mapped(rows: Sequence[Any]) -> bool:
    return any(row.kind == "mapped" for row in rows)


def _reach(edges: Iterable[tuple[str, str]], start: set[str]) -> set[str]:
    """Everything that follows `start` along the edges."""
    following = defaultdict(list)
    for a, b in edges:
        following[a].append(b)
    seen: set[str] = set()
    todo = list(start)
    while todo:
        for task in following[todo.pop()]:
            if task not in seen:
                seen.add(task)
                todo.append(task)
    return seen


def _around(connection: Connection, run_id: int, edges: list[tuple[str, str]], chosen: set[str]) -> set[str]:
    """The setup tasks before and the teardown tasks after what runs again: they make and remove what it needs."""
    roles = connection.execute(_ROLES, {"run": run_id}).all()
    setups = {r.task_id for r in roles if r.setup}
    teardowns = {r.task_id for r in roles if r.teardown}
    if not setups and not teardowns:
        return set()
    needed = setups & _reach([(b, a) for a, b in edges], chosen)
    return needed | (teardowns & _reach(edges, chosen | needed))


def _named(
    tasks: Sequence[str] | None, by_task: dict[str, list[Any]], run_id: int
) -> tuple[set[str], dict[str, set[int]]]:
    """Task ids, and of those named like `load[2]` which items."""
    if tasks is None:
        return set(by_task), {}
    names: set[str] = set()
    single: dict[str, set[int]] = {}
    for name in tasks:
        task, bracket, rest = name.partition("[")
        known = by_task.get(task)
        if not known or (bracket and not rest.removesuffix("]").isdigit()):
            raise UsageError(f"run {run_id} has no task {name!r}", "its tasks: " + ", ".join(sorted(by_task)[:20]))
        names.add(task)
        if bracket:
            index = int(rest.removesuffix("]"))
            if not any(row.map_index == index for row in known):
                raise UsageError(f"run {run_id}: task {task!r} has no item {index}", f"it has {len(known) - 1} items")
            single.setdefault(task, set()).add(index)
    return names, single


# These change without their run's lock. A statement that waited for one of them would still see it as it was before.
_LOCK_MOVING = text("""
SELECT 1 FROM task_instance WHERE run_id = :run AND state IN ('ready', 'queued', 'running', 'up_for_retry')
ORDER BY id FOR NO KEY UPDATE
""")


def _locked(connection: Connection, run_id: int) -> Any:
    lock_runs(connection, [run_id])
    connection.execute(_LOCK_MOVING, {"run": run_id})
    run = connection.execute(_RUN, {"run": run_id}).one_or_none()
    if run is None:
        raise UsageError(f"there is no run {run_id}", "`runner run list` shows the runs")
    return run


# --- mark and kill --------------------------------------------------------------------------------------------

# A mapped task whose items are still being ended is over with the last of them: until then nothing after it starts.
_ITEMS_RUN = """(t.state = 'expanded' AND EXISTS (
        SELECT 1 FROM task_instance i
        WHERE i.run_id = t.run_id AND i.task_id = t.task_id AND i.map_index >= 0 AND i.state = 'running'))"""

_MARK = text(f"""
WITH marked AS (
    UPDATE task_instance t SET state = :state, ended_at = now(), error = :why, available_at = NULL
    WHERE id = ANY (:ids) AND state <> 'running' AND state <> :state AND (:over OR state NOT IN {FINISHED})
      AND NOT {_ITEMS_RUN}
    RETURNING id, run_id
), ordered AS (
    UPDATE task_instance SET ordered = :order, error = :why WHERE id = ANY (:ids) AND state = 'running'
    RETURNING id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail) SELECT 'task', id::text, :state, run_id, :why FROM marked
)
SELECT (SELECT count(*) FROM marked) + (SELECT count(*) FROM ordered) AS n
""")


def mark(
    connection: Connection,
    run_id: int,
    tasks: Sequence[str] | None,
    state: Mark,
    *,
    by: str,
    only_unfinished: bool = False,
) -> int:
    """Say what tasks of a run have become, whatever they have done; returns how many task instances changed.

    What runs is ended within a heartbeat and then counts as said: `mark(…, "failed", only_unfinished=True)` kills.
    `load[2]` names one item of a mapped task, `load` all of them. Raises UsageError for an unknown run or task.
    """
    _locked(connection, run_id)
    by_task: dict[str, list[Any]] = defaultdict(list)
    for row in connection.execute(_INSTANCES, {"run": run_id}):
        by_task[row.task_id].append(row)
    names, single = _named(tasks, by_task, run_id)
    ids = [row.id for task in names for row in by_task[task] if task not in single or row.map_index in single[task]]
    verb = "killed" if only_unfinished and state == "failed" else f"marked {state}"
    values = {
        "ids": ids,
        "state": state,
        "order": _ORDER[state],
        "why": f"{verb} by {by}",
        "over": not only_unfinished,
    }
    n: int = connection.execute(_MARK, values).scalar_one()
    _wake(connection, settle(connection, run_id))
    return n


# Teardown tasks stay: what was set up is to be removed also now.
_END = text(f"""
WITH ended AS (
    UPDATE task_instance t SET state = 'failed', ended_at = now(), error = :why, available_at = NULL
    WHERE run_id = :run AND state NOT IN {FINISHED} AND state <> 'running' AND trigger_rule <> 'teardown'
      AND kind <> 'callback' AND NOT {_ITEMS_RUN}
    RETURNING id, run_id, state
), ordered AS (
    UPDATE task_instance SET ordered = 'fail', error = :why
    WHERE run_id = :run AND state = 'running' AND trigger_rule <> 'teardown' AND kind <> 'callback' RETURNING id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail) SELECT 'task', id::text, state, run_id, :why FROM ended
)
SELECT (SELECT count(*) FROM ended) + (SELECT count(*) FROM ordered) AS n
""")
_CANCEL_QUEUED = text("""
WITH cancelled AS (
    UPDATE dag_run SET state = 'failed', ended_at = now() WHERE id = :run AND state = 'queued' RETURNING id
)
INSERT INTO event (kind, subject, state, run_id, detail) SELECT 'run', id::text, 'failed', id, :why FROM cancelled
""")


def end_run(connection: Connection, run_id: int, *, why: str) -> int:
    """End a run before its time: what runs is killed, what has not started never will. Returns how many instances.

    The run fails. Its teardown tasks run. Raises UsageError for an unknown run.
    """
    run = _locked(connection, run_id)
    if run.state == "queued":
        connection.execute(_CANCEL_QUEUED, {"run": run_id, "why": why})
        return 0
    n: int = connection.execute(_END, {"run": run_id, "why": why}).scalar_one()
    _wake(connection, settle(connection, run_id))
    return n


_TIMED_OUT = text("""
SELECT id FROM dag_run WHERE state = 'running' AND deadline_at <= now() ORDER BY id LIMIT 50
FOR NO KEY UPDATE SKIP LOCKED
""")
_NO_DEADLINE = text("UPDATE dag_run SET deadline_at = NULL WHERE id = ANY (:ids)")


def time_out_runs(connection: Connection) -> int:
    """End the runs that have taken longer than their DAG lets them; returns how many, at most 50 a call."""
    runs = list(connection.execute(_TIMED_OUT).scalars())
    if runs:
        connection.execute(_NO_DEADLINE, {"ids": runs})
    for run_id in runs:
        end_run(connection, run_id, why="the run exceeded its timeout")
    return len(runs)


def _wake(connection: Connection, effect: Effect, *, limited: bool = False) -> None:
    if effect.limited or limited:
        admit(connection)
    notify(connection)
