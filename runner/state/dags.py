"""Switches of a DAG that people turn: paused or not."""

from __future__ import annotations

from sqlalchemy import Connection, text

from runner.state.transitions import notify

_PAUSE = text("""
WITH turned AS (
    UPDATE dag SET paused = :paused, updated_at = now() WHERE dag_id = :dag_id AND paused <> :paused RETURNING dag_id
), recorded AS (
    INSERT INTO event (kind, subject, state, detail)
    SELECT 'dag', dag_id, CASE WHEN :paused THEN 'paused' ELSE 'unpaused' END, 'by ' || :by FROM turned
)
SELECT (SELECT count(*) FROM turned) AS turned, EXISTS (SELECT 1 FROM dag WHERE dag_id = :dag_id) AS known
""")


def set_paused(connection: Connection, dag_id: str, paused: bool, *, by: str) -> bool:
    """Stop or resume the scheduled runs of a DAG; runs under way go on. False if there is no such DAG.

    Pausing twice is the same as once.
    """
    row = connection.execute(_PAUSE, {"dag_id": dag_id, "paused": paused, "by": by}).one()
    if row.turned:
        notify(connection)
    return bool(row.known)
