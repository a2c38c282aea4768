"""Waiting for a replica to catch up."""

from __future__ import annotations

import datetime as dt
from typing import Any

from runner.authoring.errors import AuthoringError
from runner.authoring.sensors.base import DeferrableSensor, connection_name

# A replica that has replayed all it was sent is not behind, however long nothing was written.
_LAG = """SELECT CASE WHEN NOT pg_is_in_recovery() THEN 0
    WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
    ELSE extract(epoch FROM now() - pg_last_xact_replay_timestamp()) END <= :seconds"""


class ReplicationSensor(DeferrableSensor):
    """Waits until a PostgreSQL replica is no more than `max_lag` behind what it was sent.

    The primary itself is never behind. For another database, or for one table, ask with a `SqlSensor` for the row
    that must have arrived.
    """

    def __init__(
        self, task_id: str, *, connection: str, max_lag: dt.timedelta = dt.timedelta(seconds=10), **options: Any
    ) -> None:
        super().__init__(task_id, **options)
        self.connection = connection_name(task_id, connection)
        if not isinstance(max_lag, dt.timedelta) or max_lag < dt.timedelta(0):
            raise AuthoringError(f"task {task_id!r}: max_lag must be a timedelta, 0 or more, not {max_lag!r}")
        self.max_lag = max_lag

    def condition(self) -> dict[str, Any]:
        """As of a SqlSensor."""
        parameters = {"seconds": self.max_lag.total_seconds()}
        return {"kind": "sql", "connection": self.connection, "sql": _LAG, "parameters": parameters}
