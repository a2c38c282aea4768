"""Duty: tell people. What is to be told stands in the database; a thread of each scheduler sends it."""

from __future__ import annotations

import contextlib
import threading

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from runner.authoring.lookup import NotFoundError, Provider, providing, resolve
from runner.authoring.operators.notify import send
from runner.settings import SluiceError

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
STUCK_SECONDS = 300.0  # what was being sent for longer is sent again: its scheduler has died in the middle
TRIES = 8
_BATCH = 20

# A single scheduler looks at a time: the second would find the same. Locked for the length of the transaction.
_LEAD = text("SELECT pg_try_advisory_xact_lock(hashtext('alert'))")
_SLOW_TASKS = text("""
INSERT INTO notification (key, receiver, occasion, dag_id, run_id, task_id, detail)
SELECT 'slow ' || t.id || ' ' || t.attempt || ' ' || r.receiver, r.receiver, 'slow', t.dag_id, t.run_id, t.task_id,
       'it runs since ' || to_char(t.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC on ' || t.node_id
FROM task_instance t JOIN dag_task d USING (dag_id, bundle_version, task_id),
jsonb_array_elements(d.notify) AS n, jsonb_array_elements_text(n -> 'to') AS r(receiver)
WHERE t.state = 'running' AND d.notify <> '[]' AND n -> 'on' ? 'slow'
  AND t.started_at < now() - make_interval(secs => CAST(n ->> 'expected_seconds' AS float))
ON CONFLICT (key) DO NOTHING
""")
# A run that has started and lasts too long, and one that has not succeeded in time, whether or not it has started.
_LATE_RUNS = text("""
INSERT INTO notification (key, receiver, occasion, dag_id, run_id, detail)
SELECT o.occasion || ' run ' || r.id || ' ' || w.receiver, w.receiver, o.occasion, r.dag_id, r.id,
       'it was due until ' || to_char(o.until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC; it is ' || r.state
FROM dag_run r JOIN dag_version v USING (dag_id, bundle_version), jsonb_array_elements(v.notify) AS n,
LATERAL (VALUES ('slow', r.started_at + make_interval(secs => CAST(n ->> 'expected_seconds' AS float))),
                ('deadline', r.interval_end + make_interval(secs => CAST(n ->> 'deadline_seconds' AS float)))
) AS o(occasion, until),
jsonb_array_elements_text(n -> 'to') AS w(receiver)
WHERE r.state IN ('queued', 'running') AND r.run_type <> 'backfill' AND v.notify <> '[]'
  AND n -> 'on' ? o.occasion AND o.until < now()
ON CONFLICT (key) DO NOTHING
""")

_CLAIM = text("""
UPDATE notification SET state = 'sending', tries = tries + 1, due_at = now() + make_interval(secs => :stuck)
WHERE id IN (SELECT id FROM notification WHERE state IN ('waiting', 'sending') AND due_at <= now()
             ORDER BY due_at, id LIMIT :n FOR UPDATE SKIP LOCKED)
RETURNING id, receiver, occasion, dag_id, run_id, task_id, detail, tries,
          (SELECT logical_date FROM dag_run r WHERE r.id = run_id) AS logical_date
""")
_SENT = text("UPDATE notification SET state = 'sent', sent_at = now(), error = NULL WHERE id = :id")
_NOT_SENT = text("""
UPDATE notification SET state = CASE WHEN tries >= :tries THEN 'failed' ELSE 'waiting' END, error = :error,
    due_at = now() + make_interval(secs => 15 * 2 ^ tries)
WHERE id = :id
""")
_WORDS = {
    "failure": "failed",
    "retry": "failed and will be tried again",
    "slow": "runs longer than expected",
    "deadline": "has missed its deadline",
    "recovery": "is well again",
}


class Alerting(threading.Thread):
    """Looks what is late, and sends what waits. Each message is taken by one scheduler, with SKIP LOCKED."""

    def __init__(self, engine: Engine, *, env: str = "", provider: Provider | None = None) -> None:
        super().__init__(name="alerting", daemon=True)
        self._engine = engine
        self._env = env
        self._provider = provider
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until `stop`."""
        with providing(self._provider) if self._provider else contextlib.nullcontext():
            while not self._stopping.is_set():
                try:
                    with self._engine.begin() as connection:
                        look(connection)
                    while not self._stopping.is_set() and self.send():
                        pass
                except DBAPIError as e:
                    log.warning("database is away", action="alert", error=str(e.orig))
                except Exception:
                    log.exception("alerting", action="alert")
                self._stopping.wait(LOOK_SECONDS)

    def stop(self) -> None:
        """End the thread; what is being sent is sent first, for some seconds."""
        self._stopping.set()
        self.join(10)

    def send(self) -> int:
        """Send up to 20 messages that wait; returns how many were taken.

        They are marked before they are sent, so nobody else sends them meanwhile.
        """
        with self._engine.begin() as connection:
            claimed = connection.execute(_CLAIM, {"n": _BATCH, "stuck": STUCK_SECONDS})
            rows = sorted(claimed, key=lambda row: row.id)
        for row in rows:
            who = f"{row.dag_id}.{row.task_id}" if row.task_id else row.dag_id
            title = f"{f'[{self._env}] ' if self._env else ''}{who} {_WORDS[row.occasion]}"
            body = f"Run {row.run_id} for {row.logical_date:%Y-%m-%d %H:%M} UTC." if row.logical_date else ""
            problem = _deliver(row.receiver, title, "\n".join(x for x in (body, row.detail) if x))
            with self._engine.begin() as connection:
                if problem:
                    log.warning(
                        "a notification was not sent", action="alert", receiver=_shown(row.receiver), why=problem
                    )
                    connection.execute(_NOT_SENT, {"id": row.id, "error": problem[:1000], "tries": TRIES})
                else:
                    connection.execute(_SENT, {"id": row.id})
        return len(rows)


def look(connection: Connection) -> None:
    """Write down what is late; nothing if another scheduler does just that."""
    if connection.execute(_LEAD).scalar_one():
        connection.execute(_SLOW_TASKS)
        connection.execute(_LATE_RUNS)


def _deliver(receiver: str, title: str, body: str) -> str:
    """Why it could not be sent, empty if it was."""
    try:
        return send(receiver if "://" in receiver else resolve(receiver).url(), title, body or title, [])
    except (NotFoundError, ValueError) as e:
        return str(e)
    except SluiceError as e:
        return e.message


def _shown(receiver: str) -> str:
    return receiver.partition("?")[0]
