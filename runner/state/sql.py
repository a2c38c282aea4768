"""Statements of the hot path, given straight to the driver: a layer between costs as much again as the driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


class Statement:
    """SQL with `:name` parameters, run in a SQLAlchemy connection's transaction. Rows are named tuples.

    Errors are SQLAlchemy's, as everywhere else, and a connection that has broken is not used again.
    """

    def __init__(self, sql: str) -> None:
        self.text = sql
        self._sql = str(text(sql).compile(dialect=_DIALECT)).encode()

    def __call__(self, connection: Connection, values: Mapping[str, Any]) -> list[Any]:
        """The rows."""
        raw: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
        try:
            with raw.cursor(row_factory=namedtuple_row) as cursor:
                cursor.execute(self._sql, values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.Error as e:
            if raw.broken:
                connection.invalidate(e)
            raise DBAPIError.instance(
                self.text, dict(values), e, psycopg.Error, connection_invalidated=raw.broken, dialect=_DIALECT
            ) from e
