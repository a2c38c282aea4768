"""Taking work: a lease with a fencing token, under the gate of the node's state."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from runner.state.sql import Statement
from runner.state.transitions.records import REFERENCE, Claim

# The gate row is locked for the length of the claim, and a cordon updates that row: one of the two comes first,
# and a claim that comes second finds no ready node.
_TAKE = """
WITH gate AS (
    SELECT node_id FROM node WHERE node_id = :node_id AND state = 'ready' FOR SHARE
), picked AS MATERIALIZED (
    {picked}
), claimed AS (
    UPDATE task_instance t
    SET state = 'running', attempt = t.attempt + CASE t.state WHEN 'queued' THEN 0 ELSE 1 END, node_id = gate.node_id,
        lease_token = gen_random_uuid(), started_at = now(), ended_at = NULL, error = NULL, ordered = NULL,
        lease_expires_at = now() + make_interval(secs => :lease)
    FROM gate, picked WHERE t.id = picked.id AND t.state IN ('ready', 'queued')
    RETURNING t.id, t.attempt, t.lease_token, t.run_id, t.dag_id, t.task_id, t.map_index, t.bundle_version,
              t.tries + 1 AS try_number, t.interruptions, t.timeout_seconds, t.node_id, t.waiting_since
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt, node_id)
    SELECT 'task', id::text, 'running', run_id, attempt, node_id FROM claimed
)
SELECT c.id, c.attempt, c.lease_token, c.run_id, c.dag_id, c.task_id, c.map_index, c.bundle_version, c.try_number,
       c.interruptions, c.timeout_seconds, r.run_type, r.logical_date, r.interval_start, r.interval_end, r.params,
       d.execution,
       CASE WHEN d.inputs = '{{}}' THEN NULL ELSE (
           SELECT jsonb_object_agg(u.task_id, CASE WHEN u.kind = 'mapped' THEN (
                      SELECT jsonb_agg({value} ORDER BY i.map_index) FROM task_instance i
                      LEFT JOIN xcom x ON x.run_id = i.run_id AND x.task_id = i.task_id AND x.map_index = i.map_index
                      WHERE i.run_id = u.run_id AND i.task_id = u.task_id AND i.map_index >= 0)
                  ELSE (SELECT {value} FROM xcom x
                        WHERE x.run_id = u.run_id AND x.task_id = u.task_id AND x.map_index = -1) END)
           FROM task_instance u
           WHERE u.run_id = c.run_id AND u.task_id = ANY (d.inputs) AND u.map_index = -1) END AS inputs,
       CASE WHEN c.map_index >= 0 THEN d.map_over END AS map_over, c.waiting_since, r.triggers
FROM claimed c JOIN dag_run r ON r.id = c.run_id
JOIN dag_task d ON d.dag_id = c.dag_id AND d.bundle_version = c.bundle_version AND d.task_id = c.task_id
"""
_VALUE = f"CASE WHEN x.url IS NULL THEN x.value ELSE jsonb_build_object('{REFERENCE}', x.url) END"

_CLAIM = Statement(
    _TAKE.format(
        value=_VALUE,
        picked="""SELECT id FROM task_instance
    WHERE id = :id AND attempt = :attempt AND state = 'queued' FOR NO KEY UPDATE""",
    )
)
# Of each queue the first few, then of those the first: a queue's index gives them in order.
_TAKE_ANY = Statement(
    _TAKE.format(
        value=_VALUE,
        picked="""SELECT q.id FROM unnest(CAST(:queues AS text[])) AS wanted(queue), LATERAL (
        SELECT id, priority FROM task_instance
        WHERE state IN ('ready', 'queued') AND admitted AND queue = wanted.queue
        ORDER BY priority DESC, id LIMIT :n FOR NO KEY UPDATE SKIP LOCKED) q
    ORDER BY q.priority DESC, q.id LIMIT :n""",
    )
)


def claim(
    connection: Connection, task_instance: int, attempt: int, *, node_id: str, lease_seconds: float
) -> Claim | None:
    """Take a queued attempt for this node, with a fencing token and a lease.

    None if there is nothing to take (another slot has it, it is over, the message is a duplicate) or if the node
    is not `ready`; `release` tells the two apart.
    """
    values = {"id": task_instance, "attempt": attempt, "node_id": node_id, "lease": lease_seconds}
    claims = _claims(connection, _CLAIM, values)
    return claims[0] if claims else None


def take(connection: Connection, *, node_id: str, queues: Sequence[str], n: int, lease_seconds: float) -> list[Claim]:
    """Take up to `n` tasks of these queues that are due, whether or not somebody was rung for them.

    A slot that has just ended a task calls it in the same transaction. Nothing if the node is not `ready`.
    """
    values = {"node_id": node_id, "queues": list(queues), "n": n, "lease": lease_seconds}
    return _claims(connection, _TAKE_ANY, values)


def _claims(connection: Connection, statement: Statement, values: dict[str, Any]) -> list[Claim]:
    rows = statement(connection, values)
    items = _items(connection, [row for row in rows if row.map_over])
    return [
        Claim(*row[:17], row.inputs or {}, items.get(row.id, {}), row.waiting_since, row.triggers or [])  # type: ignore[call-arg]
        for row in rows
    ]


# --- the arguments of an item of a mapped task ----------------------------------------------------------------

_LENGTHS = text("SELECT map_lengths FROM task_instance WHERE run_id = :run AND task_id = :task AND map_index = -1")
# What the source task returned, element by element: the list itself stays in the database.
_ELEMENTS = text(f"""
SELECT w.id, w.arg,
       CASE WHEN m.kind = 'mapped' THEN {_VALUE}
            WHEN x.url IS NOT NULL THEN jsonb_build_object('{REFERENCE}', x.url, 'index', w.index)
            ELSE x.value -> w.index END AS value
FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS w(id bigint, arg text, run_id bigint, task_id text, index int)
JOIN task_instance m ON m.run_id = w.run_id AND m.task_id = w.task_id AND m.map_index = -1
LEFT JOIN xcom x ON x.run_id = w.run_id AND x.task_id = w.task_id
     AND x.map_index = CASE WHEN m.kind = 'mapped' THEN w.index ELSE -1 END
""")


def _items(connection: Connection, rows: Sequence[Any]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    wanted = []
    lengths: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        key = (row.run_id, row.task_id)
        if key not in lengths:
            lengths[key] = connection.execute(_LENGTHS, {"run": row.run_id, "task": row.task_id}).scalar_one()
        arguments = found.setdefault(row.id, {})
        for over, index in zip(row.map_over, indexes(row.map_index, lengths[key]), strict=True):
            if "task" in over:
                wanted.append(
                    {
                        "id": row.id,
                        "arg": over["arg"],
                        "run_id": row.run_id,
                        "task_id": over["task"],
                        "index": index,
                    }
                )
            else:
                arguments[over["arg"]] = {"index": index}
    if wanted:
        for element in connection.execute(_ELEMENTS, {"wanted": json.dumps(wanted)}):
            found[element.id][element.arg] = {"value": element.value}
    return found


def indexes(map_index: int, lengths: Sequence[int]) -> list[int]:
    """Which element of each list an item stands for: all combinations in order, the last list running fastest."""
    return [map_index // math.prod(lengths[i + 1 :]) % n for i, n in enumerate(lengths)]
