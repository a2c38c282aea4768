"""Limits: pools, and how many tasks of a DAG or instances of a task may be at work.

A task that no limit counts is due when it is ready. One that is counted waits to be admitted, by whoever holds the
one lock for that: only then are two of them never admitted into the same last place. What is at work is counted from
the rows themselves, so nothing can drift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

LOCK = 0x51_0C_E1
BATCH = 200  # of one task in one pass

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_USED = text("""
SELECT dag_id, task_id, pool, count(*) AS n, sum(pool_slots) AS slots
FROM task_instance t JOIN dag_task d USING (dag_id, bundle_version, task_id)
WHERE t.limited AND (t.state IN ('queued', 'running') OR (t.state = 'ready' AND t.admitted))
GROUP BY dag_id, task_id, pool
""")
# The first few of each task that waits. The tasks are found by skipping through the index, not by reading it all.
_CANDIDATES = text("""
WITH RECURSIVE waiting AS (
    (SELECT dag_id, task_id FROM task_instance WHERE state = 'ready' AND NOT admitted
     ORDER BY dag_id, task_id LIMIT 1)
    UNION ALL
    SELECT n.dag_id, n.task_id FROM waiting w, LATERAL (
        SELECT dag_id, task_id FROM task_instance
        WHERE state = 'ready' AND NOT admitted AND (dag_id, task_id) > (w.dag_id, w.task_id)
        ORDER BY dag_id, task_id LIMIT 1) n
)
SELECT t.id, t.dag_id, t.task_id, t.priority, d.pool, d.pool_slots, d.max_active, g.max_active_tasks,
       p.slots AS pool_size
FROM waiting w, LATERAL (
    SELECT id, dag_id, task_id, bundle_version, priority FROM task_instance
    WHERE state = 'ready' AND NOT admitted AND dag_id = w.dag_id AND task_id = w.task_id
    ORDER BY priority DESC, id LIMIT :batch) t
JOIN dag_task d ON d.dag_id = t.dag_id AND d.bundle_version = t.bundle_version AND d.task_id = t.task_id
JOIN dag g ON g.dag_id = t.dag_id
LEFT JOIN pool p ON p.name = d.pool
ORDER BY t.priority DESC, t.id
""")
_ADMIT = text("""
UPDATE task_instance SET admitted = true WHERE id IN (
    SELECT id FROM task_instance WHERE id = ANY (:ids) AND state = 'ready' AND NOT admitted
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id
""")


class Candidate(NamedTuple):
    """A ready task and what counts it. `pool_size` None: there is no such pool, so nothing limits it."""

    id: int
    dag_id: str
    task_id: str
    priority: int
    pool: str | None
    pool_slots: int
    max_active: int | None
    max_active_tasks: int | None
    pool_size: int | None


class Used(NamedTuple):
    """How much is at work: instances by DAG and by task, slots by pool."""

    dags: Mapping[str, int]
    tasks: Mapping[tuple[str, str], int]
    pools: Mapping[str, int]


def choose(candidates: Iterable[Candidate], used: Used) -> list[int]:
    """Which of these, in their order, fit into what the limits leave. Pure.

    One that does not fit lets others past. A task that asks for more slots than its pool has may have the pool when
    it is empty, so it is late and not stuck.
    """
    dags, tasks, pools = Counter(used.dags), Counter(used.tasks), Counter(used.pools)
    chosen = []
    for c in candidates:
        if c.max_active_tasks is not None and dags[c.dag_id] >= c.max_active_tasks:
            continue
        if c.max_active is not None and tasks[c.dag_id, c.task_id] >= c.max_active:
            continue
        if c.pool is not None and c.pool_size is not None:
            wanted = min(c.pool_slots, max(c.pool_size, 1))
            if c.pool_size == 0 or pools[c.pool] + wanted > c.pool_size:
                continue
            pools[c.pool] += c.pool_slots
        dags[c.dag_id] += 1
        tasks[c.dag_id, c.task_id] += 1
        chosen.append(c.id)
    return chosen


def admit(connection: Connection) -> int:
    """Admit what the limits let, highest priority first; returns how many tasks.

    The last thing in a transaction that waits for anything: the lock is held until its end.
    """
    connection.execute(_LOCK, {"key": LOCK})
    candidates = [Candidate(*row) for row in connection.execute(_CANDIDATES, {"batch": BATCH})]
    if not candidates:
        return 0
    chosen = choose(candidates, _used(connection))
    return len(connection.execute(_ADMIT, {"ids": chosen}).all()) if chosen else 0


def _used(connection: Connection) -> Used:
    dags: Counter[str] = Counter()
    tasks: Counter[tuple[str, str]] = Counter()
    pools: Counter[str] = Counter()
    row: Any
    for row in connection.execute(_USED):
        dags[row.dag_id] += row.n
        tasks[row.dag_id, row.task_id] += row.n
        if row.pool is not None:
            pools[row.pool] += int(row.slots)
    return Used(dags, tasks, pools)
