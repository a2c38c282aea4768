"""Ending attempts by their token, and with them whatever that sets going; the same transaction takes the next work."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from runner.state.sql import Statement
from runner.state.transitions.admit import admit
from runner.state.transitions.propagate import Effect, lock_runs, propagate, settle
from runner.state.transitions.records import Claim, Outcome, notify
from runner.state.transitions.take import take
from runner.state.transitions.tell import tell_of_tasks
from runner.state.transitions.updates import updated_by_tasks


@dataclass
class Finished:
    """accepted: the tokens that held; one that is missing was taken away, what its attempt did is evidence only.
    claims: what the freed slots run next. more: something is ready beyond that, and idle slots should be woken."""

    accepted: set[uuid.UUID] = field(default_factory=set)
    claims: list[Claim] = field(default_factory=list)
    more: bool = False


# The node's row first: everybody locks in that order. A node that is not ready ends its tasks and takes no more.
_LOCK = Statement("""
WITH gate AS MATERIALIZED (
    SELECT count(*) AS n FROM (SELECT 1 FROM node WHERE node_id = :node_id AND state = 'ready' FOR SHARE) ready
)
SELECT (SELECT n FROM gate) AS ready FROM dag_run r
WHERE (SELECT n FROM gate) >= 0
  AND r.id = ANY (ARRAY(SELECT t.run_id FROM task_instance t WHERE t.id = ANY (:ids)))
ORDER BY r.id FOR NO KEY UPDATE
""")
_RUNS = text("SELECT DISTINCT run_id FROM task_instance WHERE id = ANY (:ids)")

# An order of a person or of a deadline outweighs how the process ended. A lease that was renewed since it was seen
# (`expires`) has not expired, and what is to be held waits for proof that its node is dead.
_FINISH = Statement("""
WITH outcome AS (
    SELECT * FROM jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS o(
        id bigint, token uuid, result text, error text, retry boolean, delay float, expires timestamptz)
), ending AS (
    SELECT o.*, t.ordered, t.limited AS is_limited, d.outlets <> '{}' AS has_outlets,
           d.notify <> '[]' AS has_notify,
           CASE WHEN t.ordered IS NOT NULL THEN 'ordered'
                WHEN o.result = 'failed' AND o.retry AND t.tries + 1 < t.max_tries THEN 'retry' ELSE o.result END AS as,
           CASE WHEN o.result = 'deferred' THEN o.delay
                ELSE least(d.retry_delay_seconds * d.retry_backoff ^ least(t.tries, 64),
                           coalesce(d.retry_max_delay_seconds, 31536000)) * (1 - d.retry_jitter * random())
           END AS wait
    FROM outcome o JOIN task_instance t ON t.id = o.id AND t.lease_token = o.token
    JOIN dag_task d ON d.dag_id = t.dag_id AND d.bundle_version = t.bundle_version AND d.task_id = t.task_id
    WHERE o.expires IS NULL
       OR (t.lease_expires_at = o.expires AND (d.on_lost <> 'hold' OR t.ordered IS NOT NULL))
), finished AS (
    UPDATE task_instance t SET
        state = CASE e.as
            WHEN 'ordered' THEN CASE e.ordered WHEN 'fail' THEN 'failed' WHEN 'succeed' THEN 'success'
                                WHEN 'skip' THEN 'skipped'
                                ELSE CASE t.kind WHEN 'item' THEN 'ready' ELSE 'waiting' END END
            WHEN 'interrupted' THEN 'ready'
            WHEN 'retry' THEN CASE WHEN e.wait > 0 THEN 'up_for_retry' ELSE 'ready' END
            WHEN 'deferred' THEN 'up_for_retry'
            ELSE e.as END,
        tries = CASE WHEN e.ordered = 'restart' THEN 0 ELSE t.tries + (e.result IN ('failed', 'success'))::int END,
        interruptions = CASE WHEN e.ordered = 'restart' THEN 0
                        ELSE t.interruptions + (e.as = 'interrupted')::int END,
        available_at = CASE WHEN e.as = 'deferred' OR (e.as = 'retry' AND e.wait > 0)
                       THEN now() + make_interval(secs => e.wait) END,
        waiting_since = CASE e.as WHEN 'deferred' THEN coalesce(t.waiting_since, t.started_at)
                        WHEN 'interrupted' THEN t.waiting_since END,
        admitted = NOT t.limited, ready_at = now(), ordered = NULL,
        lease_token = NULL, lease_expires_at = NULL, ended_at = now(),
        error = CASE WHEN e.as = 'ordered' THEN t.error ELSE e.error END
    FROM ending e
    WHERE t.id = e.id AND t.lease_token = e.token AND t.state = 'running'
      AND (e.expires IS NULL OR t.lease_expires_at = e.expires)
    RETURNING t.id, t.state, t.run_id, t.attempt, t.node_id, t.error, t.leaf, t.kind, t.limited, e.token, e.as,
              e.result, e.wait, e.has_outlets AND e.as = 'success' AND t.kind <> 'item' AS updates,
              CASE WHEN e.has_notify THEN e.as END AS told
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt, node_id, detail)
    SELECT 'task', id::text, state, run_id, attempt, node_id,
           CASE WHEN state NOT IN ('ready', 'up_for_retry') THEN error
                ELSE concat_ws(': ', CASE "as" WHEN 'interrupted' THEN 'interrupted' WHEN 'deferred' THEN 'deferred'
                                     WHEN 'retry' THEN 'will be retried' END, error) END
    FROM finished
)
SELECT id, state, run_id, leaf, kind, limited, token, updates, told FROM finished
""")

_STORE_VALUES = Statement("""
INSERT INTO xcom (run_id, task_id, map_index, value, url, length)
SELECT t.run_id, t.task_id, t.map_index, v.value, v.url, v.length
FROM jsonb_to_recordset(CAST(:values AS jsonb)) AS v(id bigint, value jsonb, url text, length int)
JOIN task_instance t ON t.id = v.id
ON CONFLICT (run_id, task_id, map_index) DO UPDATE
    SET value = excluded.value, url = excluded.url, length = excluded.length
""")

_SKIP = text("""
WITH skipped AS (
    UPDATE task_instance t SET state = 'skipped', ended_at = now(), error = 'left out by ' || w.by
    FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS w(id bigint, by text, task_id text), task_instance b
    WHERE b.id = w.id AND t.run_id = b.run_id AND t.task_id = w.task_id AND t.map_index = -1 AND t.state = 'waiting'
    RETURNING t.id, t.state, t.run_id, t.leaf, t.kind, t.limited, t.error
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, detail) SELECT 'task', id::text, state, run_id, error FROM skipped
)
SELECT * FROM skipped
""")


def finish(
    connection: Connection,
    outcomes: Sequence[Outcome],
    *,
    node_id: str | None = None,
    queues: Sequence[str] = (),
    slots: int = 0,
    lease_seconds: float = 300.0,
) -> Finished:
    """End these attempts, count their downstream tasks down, mark what became ready, and take the next work.

    All in one transaction: a node that names itself takes up to `slots` tasks of `queues` with the commit that frees
    the slots, so between two tasks there is neither a scheduler nor a message.
    """
    result = Finished()
    outcomes = list({o.token: o for o in outcomes}.values())  # one that came twice counts once
    if not outcomes:
        return result
    ids = [o.task_instance for o in outcomes]
    gates = [row.ready for row in _LOCK(connection, {"node_id": node_id, "ids": ids})]
    payload = [
        {
            "id": o.task_instance,
            "token": str(o.token),
            "result": o.result,
            "error": o.error,
            "retry": o.retry,
            "delay": o.delay_seconds,
            "expires": o.expires.isoformat() if o.expires else None,
        }
        for o in outcomes
    ]
    rows = _FINISH(connection, {"outcomes": json.dumps(payload)})
    result.accepted = {row.token for row in rows}
    # What a person has made something else of, neither hands on a value nor leaves a branch out.
    succeeded = {row.token for row in rows if row.state == "success"}
    held = [o for o in outcomes if o.token in succeeded]
    _store_values(connection, held)
    effect = _follow(connection, rows, held)
    _update_assets(connection, [row.id for row in rows if row.updates], effect)
    tell_of_tasks(connection, [(row.id, _OCCASIONS[row.told]) for row in rows if row.told in _OCCASIONS])
    if effect.limited or any(row.limited for row in rows):
        effect.ready += admit(connection)
    if slots and any(gates):
        result.claims = take(connection, node_id=str(node_id), queues=queues, n=slots, lease_seconds=lease_seconds)
    result.more = effect.ready > len(result.claims)
    return result


def _follow(connection: Connection, rows: Sequence[Any], succeeded: Sequence[Outcome]) -> Effect:
    over = [row for row in rows if row.state not in ("ready", "up_for_retry", "waiting")]
    left_out = [{"id": o.task_instance, "by": "its branch", "task_id": task} for o in succeeded for task in o.skip]
    if left_out:
        over += connection.execute(_SKIP, {"wanted": json.dumps(left_out)}).all()
    effect = propagate(connection, over)
    restarted = {row.run_id for row in rows if row.state == "waiting"}
    for run_id in sorted(restarted):
        again = settle(connection, run_id)
        effect.ready += again.ready
        effect.limited = effect.limited or again.limited
    effect.ready += sum(row.state == "ready" and not row.limited for row in rows)
    if any(row.state in ("ready", "waiting") for row in rows):
        notify(connection)  # without a worker that has room, a scheduler is to see it
    return effect


_OCCASIONS = {"failed": "failure", "retry": "retry", "success": "recovery"}


def _update_assets(connection: Connection, ids: list[int], effect: Effect) -> None:
    """A mapped task updates its assets once, when its items have ended."""
    ids += [row.id for row in effect.over if row.kind in ("mapped", "sensor") and row.state == "success"]
    if ids:
        updated_by_tasks(connection, ids)


def _store_values(connection: Connection, succeeded: Sequence[Outcome]) -> None:
    values = []
    for o in succeeded:
        if o.result == "success" and o.url is not None:
            values.append(json.dumps({"id": o.task_instance, "url": o.url, "length": o.length}))
        elif o.result == "success" and o.value is not None:
            values.append(f'{{"id":{o.task_instance},"value":{o.value}}}')
    if values:
        _STORE_VALUES(connection, {"values": f"[{','.join(values)}]"})


# --- sensors --------------------------------------------------------------------------------------------------

_SENSED = text("""
WITH outcome AS (
    SELECT * FROM jsonb_to_recordset(CAST(:outcomes AS jsonb)) AS o(id bigint, state text, error text)
), finished AS (
    UPDATE task_instance t SET state = o.state, ended_at = now(), error = o.error, attempt = t.attempt + 1,
        tries = t.tries + 1
    FROM outcome o WHERE t.id = o.id AND t.state = 'deferred'
    RETURNING t.id, t.state, t.run_id, t.attempt, t.error, t.leaf, t.kind, t.limited
), recorded AS (
    INSERT INTO event (kind, subject, state, run_id, attempt, detail)
    SELECT 'task', id::text, state, run_id, attempt, error FROM finished
)
SELECT * FROM finished
""")


_SAYS = text("""
UPDATE task_instance t SET error = s.says
FROM jsonb_to_recordset(CAST(:said AS jsonb)) AS s(id bigint, says text)
WHERE t.id = s.id AND t.state = 'deferred' AND t.error IS DISTINCT FROM s.says
""")


def sensor_says(connection: Connection, said: Sequence[tuple[int, str | None]]) -> None:
    """Show with sensors that wait what hinders looking, None for nothing."""
    if said:
        connection.execute(_SAYS, {"said": json.dumps([{"id": i, "says": says} for i, says in said])})


def sensed(connection: Connection, ended: Sequence[tuple[int, str, str | None, str | None]]) -> int:
    """End sensors: (task instance, success | failed | skipped, value as JSON text, error). Returns how many did.

    What has ended meanwhile (by hand, by its run's deadline) is left alone.
    """
    if not ended:
        return 0
    lock_runs(connection, connection.execute(_RUNS, {"ids": [e[0] for e in ended]}).scalars())
    payload = [{"id": i, "state": state, "error": error} for i, state, _, error in ended]
    rows = connection.execute(_SENSED, {"outcomes": json.dumps(payload)}).all()
    done = {row.id for row in rows}
    values = [
        f'{{"id":{i},"value":{value}}}' for i, state, value, _ in ended if i in done and state == "success" and value
    ]
    if values:
        _STORE_VALUES(connection, {"values": f"[{','.join(values)}]"})
    effect = propagate(connection, rows)
    _update_assets(connection, [], effect)
    tell_of_tasks(connection, [(row.id, "failure") for row in rows if row.state == "failed"])
    if effect.limited:
        admit(connection)
    if effect.ready or effect.limited:
        notify(connection)
    return len(rows)
