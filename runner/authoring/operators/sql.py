"""SQL as a task, on whatever SQLAlchemy can reach."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from runner.authoring.context import Context
from runner.authoring.lookup import Connection, resolve
from runner.authoring.operators.base import Operator
from runner.authoring.operators.stopping import stoppable

if TYPE_CHECKING:
    from sqlalchemy import Connection as SqlConnection
    from sqlalchemy import CursorResult

Returns = Literal["none", "first", "rows", "value"]


class SQLError(RuntimeError):
    """A statement failed, or its result cannot be the task's value."""


class SQLOperator(Operator):
    """Runs one or more statements in one transaction: all of them count, or none.

    `connection` is a name, a URL or a Connection. `parameters` are bound to `:name` in the statements; without any,
    statements go to the database as they are. `returns` says what of the last statement's result is the task's value:
    "none", "first" (its first row as a dict, None if there is none), "value" (the first column of that row) or "rows"
    (a list of dicts, at most `max_rows`). Times become ISO 8601, exact numbers and UUIDs text. `autocommit` is for
    what refuses to run in a transaction, such as VACUUM. Raises SQLError.
    """

    template_fields = ("sql", "parameters")

    def __init__(
        self,
        task_id: str,
        *,
        connection: str | Connection,
        sql: str | Sequence[str],
        parameters: Mapping[str, Any] | None = None,
        returns: Returns = "none",
        max_rows: int = 10_000,
        autocommit: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.connection = connection
        self.sql = sql if isinstance(sql, str) else list(sql)
        self.parameters = dict(parameters or {})
        self.returns = returns
        self.max_rows = max_rows
        self.autocommit = autocommit

    def execute(self, context: Context) -> Any:
        """Run the statements; commit at the end."""
        statements = [self.sql] if isinstance(self.sql, str) else self.sql
        with stoppable(), transaction(self.connection, autocommit=self.autocommit) as connection:
            result = None
            for statement in statements:
                result = run(connection, statement, self.parameters)
                if result.rowcount >= 0:
                    print(f"{result.rowcount} rows: {' '.join(statement.split())[:100]}")
            return self._value(result)

    def _value(self, result: Any) -> Any:
        if self.returns == "none":
            return None
        if result is None or not result.returns_rows:
            raise SQLError(f"returns={self.returns!r}, but the last statement returns no rows")
        if self.returns == "rows":
            rows = result.mappings().fetchmany(self.max_rows + 1)
            if len(rows) > self.max_rows:
                raise SQLError(
                    f"more than max_rows={self.max_rows} rows; aggregate them in SQL, or use SQLToStorage and "
                    f"return where they are"
                )
            return [{name: plain(value) for name, value in row.items()} for row in rows]
        row = result.mappings().first()
        if self.returns == "value":
            return None if row is None else plain(next(iter(row.values())))
        return None if row is None else {name: plain(value) for name, value in row.items()}


@contextlib.contextmanager
def transaction(where: str | Connection, *, autocommit: bool = False) -> Iterator[SqlConnection]:
    """One connection with one transaction: committed at the end of the block, rolled back if it raises.

    Raises SQLError, in one line, for what the database refuses.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    found = resolve(where)
    name = f"connection {found.name or found.type}"
    try:
        engine = create_engine(
            found.url(), poolclass=NullPool, **({"isolation_level": "AUTOCOMMIT"} if autocommit else {})
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as e:
        raise SQLError(f"{name}: {e}; is the driver of {found.type!r} among the bundle's requirements?") from None
    try:
        with engine.begin() as connection:
            yield connection
    except DBAPIError as e:
        raise SQLError(f"{name}: {str(e.orig).strip()}") from e
    except SQLAlchemyError as e:
        raise SQLError(f"{name}: {e}") from e


def plain(value: Any) -> Any:
    """A column's value as JSON holds it; what it does not know stays as it is, and is refused by name later."""
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return value


def run(connection: SqlConnection, statement: str, parameters: Mapping[str, Any]) -> CursorResult[Any]:
    """One statement with the parameters it names; without any it goes to the database as it is."""
    from sqlalchemy import text

    if not parameters:
        # no_parameters: else a driver looks for its own placeholders, such as %s, in it
        return connection.execution_options(no_parameters=True).exec_driver_sql(statement)
    named = text(statement)
    # One set for several statements: some drivers refuse what a statement does not name.
    return connection.execute(named, {n: parameters[n] for n in named.compile().params if n in parameters})
