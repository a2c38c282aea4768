"""What there is to do, found out with one statement: a scheduler that has nothing to do costs nothing."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from runner.state.sql import Statement

# Each answer is the first entry of a partial index.
_AGENDA = Statement("""
SELECT EXISTS (SELECT 1 FROM dag WHERE active AND NOT paused AND schedule IS NOT NULL
               AND (next_run_at IS NULL OR next_run_at <= now())) AS due_dags,
       EXISTS (SELECT 1 FROM dag_run WHERE state = 'queued') AS queued_runs,
       EXISTS (SELECT 1 FROM dag_run WHERE state = 'running' AND deadline_at <= now()) AS late_runs,
       EXISTS (SELECT 1 FROM backfill WHERE state = 'running') AS backfills,
       EXISTS (SELECT 1 FROM task_instance WHERE state = 'up_for_retry' AND available_at <= now()) AS retries,
       EXISTS (SELECT 1 FROM task_instance WHERE state = 'waiting' AND past_blocked) AS past,
       EXISTS (SELECT 1 FROM task_instance WHERE state = 'ready' AND NOT admitted) AS limited,
       EXISTS (SELECT 1 FROM task_instance WHERE state IN ('ready', 'queued') AND admitted) AS due,
       EXISTS (SELECT 1 FROM asset_pending p JOIN dag d USING (dag_id)
               WHERE NOT p.seen AND d.active AND NOT d.paused) AS assets
""")


class Agenda(NamedTuple):
    """Which duties have something to look at. due: tasks that are ready, or were rung for and not claimed yet."""

    due_dags: bool
    queued_runs: bool
    late_runs: bool
    backfills: bool
    retries: bool
    past: bool
    limited: bool
    due: bool
    assets: bool


def agenda(connection: Connection) -> Agenda:
    """Look."""
    (row,) = _AGENDA(connection, {})
    return Agenda(*row)
