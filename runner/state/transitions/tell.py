"""What is to be told to people, written down with the commit that makes it true; runner.scheduler.alert sends it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

# One message a receiver and occasion: the key refuses the second. Of the items of a mapped task only the first tells.
_TASKS = text("""
INSERT INTO notification (key, receiver, occasion, dag_id, run_id, task_id, detail)
SELECT w.occasion || ' ' || CASE WHEN t.map_index >= 0 THEN t.run_id || ' ' || t.task_id
                            ELSE t.id || ' ' || t.attempt END || ' ' || r.receiver,
       r.receiver, w.occasion, t.dag_id, t.run_id, t.task_id, t.error
FROM jsonb_to_recordset(CAST(:told AS jsonb)) AS w(id bigint, occasion text)
JOIN task_instance t ON t.id = w.id
JOIN dag_task d ON d.dag_id = t.dag_id AND d.bundle_version = t.bundle_version AND d.task_id = t.task_id,
jsonb_array_elements(d.notify) AS n, jsonb_array_elements_text(n -> 'to') AS r(receiver)
WHERE n -> 'on' ? w.occasion AND (w.occasion <> 'recovery' OR t.map_index < 0 AND (
    SELECT p.state = 'failed'
    FROM task_instance p JOIN dag_run q ON q.id = p.run_id JOIN dag_run own ON own.id = t.run_id
    WHERE q.dag_id = t.dag_id AND q.logical_date < own.logical_date AND p.task_id = t.task_id AND p.map_index = -1
      AND p.state IN ('failed', 'success')
    ORDER BY q.logical_date DESC LIMIT 1))
ON CONFLICT (key) DO NOTHING
""")
_RUNS = text("""
INSERT INTO notification (key, receiver, occasion, dag_id, run_id, detail)
SELECT o.occasion || ' run ' || r.id || ' ' || extract(epoch FROM r.ended_at) || ' ' || w.receiver,
       w.receiver, o.occasion, r.dag_id, r.id,
       CASE r.state WHEN 'failed' THEN (
           SELECT string_agg(f.task_id || ': ' || coalesce(f.error, f.state), E'\\n') FROM (
               SELECT task_id, error, state FROM task_instance
               WHERE run_id = r.id AND state = 'failed' AND map_index = -1 ORDER BY ended_at LIMIT 5) f) END
FROM dag_run r JOIN dag_version v USING (dag_id, bundle_version),
LATERAL (SELECT CASE r.state WHEN 'failed' THEN 'failure' ELSE 'recovery' END AS occasion) o,
jsonb_array_elements(v.notify) AS n, jsonb_array_elements_text(n -> 'to') AS w(receiver)
WHERE r.id = ANY (:ids) AND n -> 'on' ? o.occasion AND (o.occasion <> 'recovery' OR (
    SELECT q.state = 'failed' FROM dag_run q
    WHERE q.dag_id = r.dag_id AND q.logical_date < r.logical_date AND q.state IN ('failed', 'success')
    ORDER BY q.logical_date DESC LIMIT 1))
ON CONFLICT (key) DO NOTHING
""")


def tell_of_tasks(connection: Connection, told: Sequence[tuple[int, str]]) -> None:
    """These task instances have had an occasion (failure, retry, recovery) that somebody may want to know."""
    if told:
        payload = json.dumps([{"id": id, "occasion": occasion} for id, occasion in told])
        connection.execute(_TASKS, {"told": payload})


def tell_of_runs(connection: Connection, ids: Sequence[int]) -> None:
    """These runs have ended, and their DAGs have somebody to tell."""
    if ids:
        connection.execute(_RUNS, {"ids": list(ids)})
