"""Waiting for what a query says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.authoring.sensors.base import DeferrableSensor, connection_name


class SqlSensor(DeferrableSensor):
    """Waits until a query's first row begins with something true: `SELECT count(*) > 0 FROM sales WHERE day = :day`.

    No row, NULL, 0, false and empty text are not yet. `connection` is a name, or a URL without a password;
    `parameters` are bound to `:name`. The query runs in a transaction that is rolled back. The value is what the first
    column said.
    """

    template_fields = ("sql", "parameters")

    def __init__(
        self, task_id: str, *, connection: str, sql: str, parameters: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(task_id, **options)
        self.connection = connection_name(task_id, connection)
        self.sql = sql
        self.parameters = dict(parameters or {})

    def condition(self) -> dict[str, Any]:
        """{"kind": "sql", "connection", "sql", "parameters"}"""
        return {"kind": "sql", "connection": self.connection, "sql": self.sql, "parameters": self.parameters}
