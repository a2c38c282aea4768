"""What must hold after every scenario, whatever was killed: read from the ledger, and held against the database."""

from __future__ import annotations

from dataclasses import dataclass

from runner.localcloud.judge import Execution, judge, read_ledger

from .fleet import Fleet

_RETRIED = """
    SELECT max(detail) FROM event
    WHERE kind = 'task' AND subject = CAST(:id AS text) AND detail LIKE 'will be retried%'"""


@dataclass(frozen=True)
class Result:
    """`killed` and `unheard` are what the fault was allowed to do; `problems` is what nothing is allowed to do.

    unheard: run again although it had completed, because its worker or its lease was gone before the database
    heard of it (a task runs at least once, its outcome counts once).
    """

    tasks: int
    lost: int
    killed: int
    unheard: int
    overlapped: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verdict(fleet: Fleet, *, kills: bool) -> Result:
    """Judge a scenario that has ended, but for the runs that it judges itself.

    kills: its fault may end a task in the middle.
    """
    problems = list(fleet.problems)
    # The heartbeat runs of a roll are the product's own: they know no ledger.
    everything = fleet.all("""
        SELECT t.run_id, t.task_id, t.state, t.tries, t.attempt, t.error, t.id
        FROM task_instance t JOIN dag_run r ON r.id = t.run_id WHERE r.run_type <> 'heartbeat' ORDER BY t.id""")
    instances = [row for row in everything if row.run_id not in fleet.doomed]
    found = judge(read_ledger(fleet.ledger), [(row.run_id, row.task_id) for row in instances])
    if found.lost:
        problems.append(f"lost: {_some(found.lost)}")
    if found.overlapped:
        problems.append(f"overlapped: {_some(found.overlapped)}")
    heard = [e for e in found.repeated if _was_heard(fleet, e)]
    if heard:
        problems.append(f"run again although the database knew that it had completed: {_some(heard)}")
    if not kills:
        if found.killed:
            problems.append(f"killed: {_some(found.killed)}")
        if found.repeated:
            problems.append(f"run again: {_some(found.repeated)}")
    for row in instances:
        if row.state != "success":
            problems.append(f"task instance {row.id} of run {row.run_id} is {row.state}: {row.error}")
        elif row.tries != 1:
            why = fleet.one(_RETRIED, id=row.id)
            problems.append(f"task instance {row.id} of run {row.run_id} used up {row.tries - 1} retries: {why}")
    runs = fleet.all("SELECT id, state, unfinished FROM dag_run WHERE run_type <> 'heartbeat'")
    problems += [
        f"run {r.id} is {r.state}"
        for r in runs
        if r.unfinished != 0 or (r.state != "success" and r.id not in fleet.doomed)
    ]
    missing = set(fleet.created) - {r.id for r in runs}
    if missing:
        problems.append(f"runs that are not there: {sorted(missing)}")
    problems += _claims_on_cordoned_nodes(fleet)
    killed = 0 if not kills else len(found.killed)
    return Result(found.tasks, len(found.lost), killed, len(found.repeated), len(found.overlapped), tuple(problems))


def _was_heard(fleet: Fleet, again: Execution) -> bool:
    """Had an earlier attempt of this task instance been committed as a success?"""
    sql = """
        SELECT count(*) FROM event e JOIN task_instance t ON e.subject = CAST(t.id AS text) AND e.run_id = t.run_id
        WHERE e.kind = 'task' AND e.state = 'success' AND t.run_id = :run AND t.task_id = :task
          AND e.attempt < :attempt"""
    instance = again.instance
    return bool(fleet.one(sql, run=int(instance.run_id), task=instance.task_id, attempt=again.attempt))


def _claims_on_cordoned_nodes(fleet: Fleet) -> list[str]:
    """Claims that a node made after it was told to drain.

    A claim and a cordon lock the same row, and both events are stamped while it is held: their times are in the order
    in which the two happened.
    """
    rows = fleet.all("""
        SELECT at, kind, state, node_id FROM event
        WHERE node_id IS NOT NULL AND (kind = 'node' OR (kind = 'task' AND state = 'running')) ORDER BY at, id""")
    state: dict[str, str] = {}
    wrong: dict[str, int] = {}
    for row in rows:
        if row.kind == "node":
            state[row.node_id] = row.state
        elif state.get(row.node_id) != "ready":
            wrong[row.node_id] = wrong.get(row.node_id, 0) + 1
    return [f"{n} claims by {node} after it was cordoned" for node, n in wrong.items()]


def _some(items: object) -> str:
    listed = list(items)  # type: ignore[call-overload]
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(str(tuple(i)) for i in listed[:3]) + more
