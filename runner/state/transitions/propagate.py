"""What the end of some tasks means for those after them and for their runs. The runs' rows are locked by the caller."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from runner.state.sql import Statement
from runner.state.transitions.records import notify
from runner.state.transitions.rules import DECIDE, DECIDE_MAPPED, FINISHED, START
from runner.state.transitions.tell import tell_of_runs

MAX_ITEMS = 100_000  # of one mapped task


@dataclass
class Effect:
    """What has happened: `over` are instances that have ended, `ready` how many may be taken, `limited` of what
    waits to be admitted."""

    over: list[Any] = field(default_factory=list)
    ready: int = 0
    limited: bool = False


_LOCK_RUNS = text("SELECT id FROM dag_run WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE")


def lock_runs(connection: Connection, run_ids: Iterable[int]) -> list[int]:
    """Lock these runs, in the order everybody does; returns those that exist."""
    return list(connection.execute(_LOCK_RUNS, {"ids": sorted(set(run_ids))}).scalars())


_RESULT_COLUMNS = "t.id, t.state, t.run_id, t.kind, t.leaf, t.limited"

# A task counts down what is downstream of it, an item the task it belongs to.
_PROPAGATE = Statement(f"""
WITH finished AS (
    SELECT run_id, dag_id, bundle_version, task_id, kind, state, setup FROM task_instance WHERE id = ANY (:ids)
), moved AS (
    SELECT f.run_id, e.downstream AS task_id, 'waiting' AS while, count(*) AS n,
           count(*) FILTER (WHERE f.state IN ('failed', 'upstream_failed')) AS failed,
           count(*) FILTER (WHERE f.state = 'skipped') AS skipped,
           count(*) FILTER (WHERE f.state = 'success' AND f.setup) AS setups
    FROM finished f
    JOIN dag_edge e ON e.dag_id = f.dag_id AND e.bundle_version = f.bundle_version AND e.upstream = f.task_id
    WHERE f.kind NOT IN ('item', 'callback') GROUP BY f.run_id, e.downstream
    UNION ALL
    SELECT run_id, task_id, 'expanded', count(*), count(*) FILTER (WHERE state = 'failed'),
           count(*) FILTER (WHERE state = 'skipped'), 0
    FROM finished WHERE kind = 'item' GROUP BY run_id, task_id
), counted AS (
    SELECT t.id, t.kind, t.state, t.past_blocked, t.trigger_rule AS rule, t.waiting_on - m.n AS w,
           t.upstream_failed + m.failed AS f, t.upstream_skipped + m.skipped AS s, t.setups_ok + m.setups AS setups,
           t.upstream_total - (t.waiting_on - m.n) - (t.upstream_failed + m.failed)
               - (t.upstream_skipped + m.skipped) AS ok
    -- OFFSET keeps the planner from turning this inside out: a look-up for each of the few, by the unique key
    FROM moved m, LATERAL (SELECT * FROM task_instance t WHERE t.run_id = m.run_id AND t.task_id = m.task_id
                           AND t.map_index = -1 AND t.state = m.while OFFSET 0) t
), decided AS (
    SELECT *, CASE WHEN state = 'expanded' THEN {DECIDE_MAPPED} ELSE {DECIDE} END AS decision FROM counted
), entered AS (
    SELECT *, CASE WHEN decision = 'ready' THEN {START} ELSE decision END AS enters FROM decided
), updated AS (
    UPDATE task_instance t SET
        waiting_on = e.w, upstream_failed = e.f, upstream_skipped = e.s, setups_ok = e.setups, state = e.enters,
        ready_at = CASE WHEN e.enters = 'ready' THEN now() END,
        started_at = CASE WHEN e.enters = 'deferred' THEN now() ELSE t.started_at END,
        ended_at = CASE WHEN e.enters IN {FINISHED} THEN now() END,
        error = CASE WHEN e.state = 'expanded' AND e.enters = 'failed'
                THEN e.f || ' of ' || t.upstream_total || ' items failed' ELSE t.error END
    FROM entered e WHERE t.id = e.id
    RETURNING {_RESULT_COLUMNS}, e.state AS before, e.decision = 'ready' AND e.kind = 'mapped'
                                                    AND NOT e.past_blocked AS expands
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id)
    SELECT 'task', id::text, state, run_id FROM updated WHERE state <> before
)
SELECT * FROM updated
""")

_COUNT_DOWN_RUNS = Statement("""
WITH done AS (
    SELECT * FROM jsonb_to_recordset(CAST(:done AS jsonb)) AS d(run_id bigint, n int, failed int)
), updated AS (
    UPDATE dag_run r SET
        unfinished = r.unfinished - d.n, failed_leaves = r.failed_leaves + d.failed,
        state = CASE WHEN r.unfinished > d.n THEN 'running'
                     WHEN r.failed_leaves + d.failed > 0 THEN 'failed' ELSE 'success' END,
        ended_at = CASE WHEN r.unfinished <= d.n THEN now() END
    FROM done d WHERE r.id = d.run_id
    RETURNING r.id, r.state
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id)
    SELECT 'run', id::text, state, id FROM updated WHERE state <> 'running'
)
SELECT id, state FROM updated WHERE state <> 'running'
""")


def propagate(connection: Connection, over: Iterable[Any]) -> Effect:
    """Carry finished instances down the graph, level by level while whole levels skip or fail, and end the runs."""
    effect = Effect()
    runs: dict[int, list[int]] = {}
    level = list(over)
    while level:
        effect.over += level
        for row in level:
            if row.kind not in ("item", "callback"):
                counts = runs.setdefault(row.run_id, [0, 0])
                counts[0] += 1
                counts[1] += row.leaf and row.state in ("failed", "upstream_failed")
        level = _step(connection, _PROPAGATE(connection, {"ids": [row.id for row in level]}), effect)
    if runs:
        done = [{"run_id": r, "n": n, "failed": f} for r, (n, f) in sorted(runs.items())]
        end_runs(connection, _COUNT_DOWN_RUNS(connection, {"done": json.dumps(done)}), effect)
    return effect


def _step(connection: Connection, moved: Sequence[Any], effect: Effect) -> list[Any]:
    """Note what these instances have become, expand what is to be expanded; returns what is over with that."""
    over = []
    expands = []
    for row in moved:
        if row.state in ("success", "failed", "skipped", "upstream_failed"):
            over.append(row)
        elif row.state == "ready":
            _note_ready(effect, row.limited)
        elif row.state == "deferred":
            notify(connection)  # a scheduler waits for it
        elif row.expands:
            expands.append(row.id)
    if expands:
        expanded = expand(connection, expands)
        effect.ready += expanded.ready
        effect.limited = effect.limited or expanded.limited
        over += expanded.over
    return over


def _note_ready(effect: Effect, limited: bool, n: int = 1) -> None:
    if limited:
        effect.limited = True
    else:
        effect.ready += n


# --- the end of a run -----------------------------------------------------------------------------------------

_CALLBACKS = text(f"""
WITH ended AS (
    SELECT r.id, r.dag_id, r.bundle_version, r.queue, r.priority, r.run_type, v.notify,
           CASE r.state WHEN 'failed' THEN '@on_failure' ELSE '@on_success' END AS task_id, v.callbacks
    FROM dag_run r JOIN dag_version v USING (dag_id, bundle_version) WHERE r.id = ANY (:ids)
), created AS (
    INSERT INTO task_instance (run_id, dag_id, task_id, bundle_version, kind, state, queue, priority, trigger_rule,
                               leaf, upstream_total, waiting_on, max_tries, timeout_seconds, ready_at)
    SELECT e.id, e.dag_id, t.task_id, e.bundle_version, 'callback', 'ready', coalesce(e.queue, t.queue),
           t.priority + e.priority, 'always', false, 0, 0, t.max_tries, t.timeout_seconds, now()
    FROM ended e JOIN dag_task t USING (dag_id, bundle_version, task_id) WHERE e.task_id = ANY (e.callbacks)
    -- a run that was cleared ends again
    ON CONFLICT (run_id, task_id, map_index) DO UPDATE SET state = 'ready', ready_at = now(), tries = 0
        WHERE task_instance.state IN {FINISHED}
    RETURNING id, run_id
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id) SELECT 'task', id::text, 'ready', run_id FROM created
)
SELECT (SELECT count(*) FROM created) AS callbacks,
       ARRAY(SELECT id FROM ended WHERE notify <> '[]') AS told,
       EXISTS (SELECT 1 FROM dag_run q JOIN ended e USING (dag_id) WHERE q.state = 'queued')
           OR EXISTS (SELECT 1 FROM ended WHERE run_type = 'backfill') AS awaited
""")


def end_runs(connection: Connection, ended: Sequence[Any], effect: Effect) -> None:
    """What follows the end of runs: their callbacks, and room for runs that wait for it."""
    if not ended:
        return
    row = connection.execute(_CALLBACKS, {"ids": [run.id for run in ended]}).one()
    effect.ready += row.callbacks
    tell_of_runs(connection, row.told)
    if row.awaited:
        notify(connection)


# --- mapped tasks ---------------------------------------------------------------------------------------------

_MAPPED = text("""
SELECT t.id, t.run_id, t.task_id, t.limited, d.map_over
FROM task_instance t JOIN dag_task d USING (dag_id, bundle_version, task_id)
WHERE t.id = ANY (:ids) AND t.state = 'waiting' ORDER BY t.id
""")
_LENGTH = text("""
SELECT CASE WHEN u.kind = 'mapped' THEN (SELECT count(*) FROM task_instance i
                WHERE i.run_id = u.run_id AND i.task_id = u.task_id AND i.map_index >= 0)
            WHEN x.url IS NOT NULL THEN x.length
            WHEN jsonb_typeof(x.value) = 'array' THEN jsonb_array_length(x.value) END
FROM task_instance u LEFT JOIN xcom x ON x.run_id = u.run_id AND x.task_id = u.task_id AND x.map_index = -1
WHERE u.run_id = :run_id AND u.task_id = :task_id AND u.map_index = -1
""")
_EXPAND = text("""
WITH mapped AS (
    UPDATE task_instance SET state = 'expanded', map_lengths = :lengths, upstream_total = :n, waiting_on = :n,
        upstream_failed = 0, upstream_skipped = 0, started_at = now()
    WHERE id = :id RETURNING *
), created AS (
    INSERT INTO task_instance (run_id, dag_id, task_id, map_index, bundle_version, kind, state, queue, priority,
                               trigger_rule, leaf, limited, admitted, upstream_total, waiting_on, max_tries,
                               timeout_seconds, ready_at)
    SELECT run_id, dag_id, task_id, i, bundle_version, 'item', 'ready', queue, priority, 'all_success', false,
           limited, NOT limited, 0, 0, max_tries, timeout_seconds, now()
    FROM mapped, generate_series(0, :n - 1) AS i ORDER BY i
)
INSERT INTO event (kind, subject, state, run_id, detail)
SELECT 'task', id::text, 'expanded', run_id, CAST(:n AS text) || ' items' FROM mapped
""")
_EXPANDS_TO_NOTHING = text(f"""
WITH ended AS (
    UPDATE task_instance t SET state = :state, ended_at = now(), error = :why WHERE id = :id
    RETURNING {_RESULT_COLUMNS}, t.error
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail) SELECT 'task', id::text, state, run_id, error FROM ended
)
SELECT * FROM ended
""")


def expand(connection: Connection, ids: Sequence[int]) -> Effect:
    """Make the items of mapped tasks whose turn has come: all combinations of the lists' elements.

    Without any element the task is skipped; with what is no list, or more than MAX_ITEMS, it fails. Those are in
    `over`, not propagated yet.
    """
    effect = Effect()
    for row in connection.execute(_MAPPED, {"ids": list(ids)}).all():
        lengths = [_length(connection, row.run_id, over) for over in row.map_over]
        why, state = _cannot_expand(row.map_over, lengths)
        if why:
            over = connection.execute(_EXPANDS_TO_NOTHING, {"id": row.id, "state": state, "why": why}).one()
            effect.over.append(over)
            continue
        n = math.prod(lengths)  # type: ignore[arg-type]
        connection.execute(_EXPAND, {"id": row.id, "lengths": lengths, "n": n})
        _note_ready(effect, row.limited, n)
    return effect


def _length(connection: Connection, run_id: int, over: dict[str, Any]) -> int | None:
    if "length" in over:
        return int(over["length"])
    n = connection.execute(_LENGTH, {"run_id": run_id, "task_id": over["task"]}).scalar()
    return None if n is None else int(n)


def _cannot_expand(map_over: Sequence[dict[str, Any]], lengths: Sequence[int | None]) -> tuple[str, str]:
    for over, n in zip(map_over, lengths, strict=True):
        if n is None:
            return f"cannot map over what task {over.get('task')!r} returned: it is no list", "failed"
    n = math.prod(lengths)  # type: ignore[arg-type]
    if n == 0:
        return "nothing to map over", "skipped"
    if n > MAX_ITEMS:
        return f"would map over {n:,} items; at most {MAX_ITEMS:,} are allowed", "failed"
    return "", ""


# --- counting anew --------------------------------------------------------------------------------------------

_RECOUNT = text(f"""
WITH edges AS (
    SELECT d.id, count(*) AS total, count(*) FILTER (WHERE u.state NOT IN {FINISHED}) AS w,
           count(*) FILTER (WHERE u.state IN ('failed', 'upstream_failed')) AS f,
           count(*) FILTER (WHERE u.state = 'skipped') AS s,
           count(*) FILTER (WHERE u.state = 'success' AND u.setup) AS setups
    FROM task_instance d
    JOIN dag_edge e ON e.dag_id = d.dag_id AND e.bundle_version = d.bundle_version AND e.downstream = d.task_id
    JOIN task_instance u ON u.run_id = d.run_id AND u.task_id = e.upstream AND u.map_index = -1
    WHERE d.run_id = :run AND d.state = 'waiting' GROUP BY d.id
), counted AS (
    SELECT t.id, t.kind, t.state, t.past_blocked, t.trigger_rule AS rule, coalesce(e.w, 0) AS w,
           coalesce(e.f, 0) AS f, coalesce(e.s, 0) AS s, coalesce(e.setups, 0) AS setups,
           coalesce(e.total, 0) AS total, coalesce(e.total - e.w - e.f - e.s, 0) AS ok
    FROM task_instance t LEFT JOIN edges e USING (id)
    WHERE t.run_id = :run AND t.state = 'waiting' AND t.kind IN ('task', 'sensor', 'mapped')
    UNION ALL
    SELECT t.id, t.kind, t.state, false, t.trigger_rule, count(*) FILTER (WHERE i.state NOT IN {FINISHED}),
           count(*) FILTER (WHERE i.state = 'failed'), count(*) FILTER (WHERE i.state = 'skipped'), 0, count(*),
           count(*) FILTER (WHERE i.state = 'success')
    FROM task_instance t JOIN task_instance i ON i.run_id = t.run_id AND i.task_id = t.task_id AND i.map_index >= 0
    WHERE t.run_id = :run AND t.state = 'expanded' AND t.kind = 'mapped' GROUP BY t.id
), decided AS (
    SELECT *, CASE WHEN state = 'expanded' THEN {DECIDE_MAPPED} WHEN total = 0 THEN 'ready' ELSE {DECIDE} END
        AS decision FROM counted
), entered AS (
    SELECT *, CASE WHEN decision = 'ready' THEN {START} ELSE decision END AS enters FROM decided
), updated AS (
    UPDATE task_instance t SET
        upstream_total = e.total, waiting_on = e.w, upstream_failed = e.f, upstream_skipped = e.s,
        setups_ok = e.setups, state = e.enters,
        admitted = CASE WHEN e.enters = 'ready' THEN NOT t.limited ELSE t.admitted END,
        ready_at = CASE WHEN e.enters = 'ready' THEN now() END,
        started_at = CASE WHEN e.enters = 'deferred' THEN now() ELSE t.started_at END,
        ended_at = CASE WHEN e.enters IN {FINISHED} THEN now() END,
        error = CASE WHEN e.state = 'expanded' AND e.enters = 'failed'
                THEN e.f || ' of ' || e.total || ' items failed' ELSE t.error END
    FROM entered e WHERE t.id = e.id
    RETURNING {_RESULT_COLUMNS}, e.state AS before, e.decision = 'ready' AND e.kind = 'mapped'
                                                    AND NOT e.past_blocked AS expands
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id)
    SELECT 'task', id::text, state, run_id FROM updated WHERE state <> before
)
SELECT * FROM updated
""")

_RECOUNT_RUN = text(f"""
WITH counted AS (
    SELECT count(*) FILTER (WHERE state NOT IN {FINISHED}) AS unfinished,
           count(*) FILTER (WHERE leaf AND state IN ('failed', 'upstream_failed')) AS failed
    FROM task_instance WHERE run_id = :run AND kind NOT IN ('item', 'callback')
), old AS (
    SELECT r.state, v.run_timeout_seconds FROM dag_run r JOIN dag_version v USING (dag_id, bundle_version)
    WHERE r.id = :run
), updated AS (
    UPDATE dag_run r SET unfinished = c.unfinished, failed_leaves = c.failed,
        state = CASE WHEN c.unfinished > 0 THEN 'running' WHEN c.failed > 0 THEN 'failed' ELSE 'success' END,
        ended_at = CASE WHEN c.unfinished = 0 THEN now() END,
        -- one that had ended and goes on has its whole time again
        deadline_at = CASE WHEN old.state = 'running' OR c.unfinished = 0 THEN r.deadline_at
                      ELSE now() + make_interval(secs => old.run_timeout_seconds) END
    FROM counted c, old WHERE r.id = :run RETURNING r.id, r.state
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id)
    SELECT 'run', u.id::text, u.state, u.id FROM updated u, old WHERE u.state <> old.state
)
SELECT u.id, u.state, old.state AS before FROM updated u, old
""")


def settle(connection: Connection, run_id: int) -> Effect:
    """Count a whole run anew after something in it was changed by hand: what waits may start, or be over.

    Costs what the run is large; the ordinary path is `propagate`.
    """
    effect = Effect()
    while True:
        over = _step(connection, connection.execute(_RECOUNT, {"run": run_id}).all(), effect)
        effect.over += over
        if not over:
            break
    row = connection.execute(_RECOUNT_RUN, {"run": run_id}).one()
    if row.state in ("success", "failed") and row.before != row.state:
        end_runs(connection, [row], effect)
    return effect
