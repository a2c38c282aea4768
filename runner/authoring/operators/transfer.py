"""Tables out of files and files out of tables: CSV between storage and SQL, by COPY on PostgreSQL."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runner.authoring.context import Context
from runner.authoring.lookup import Connection
from runner.authoring.operators.base import Operator
from runner.authoring.operators.files import find, listed
from runner.authoring.operators.sql import SQLError, plain, run, transaction
from runner.authoring.operators.stopping import stoppable

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy

    from runner.storage import Storage

_PIECE = 1024 * 1024  # bytes handed on at a time
_AHEAD = 4  # pieces of a file (a few MiB each) that are read before the database takes them
_BATCH = 5_000  # rows of an INSERT where there is no COPY


class StorageToSQL(Operator):
    """Loads CSV files into a table, in one transaction for all of them: COPY on PostgreSQL, INSERT elsewhere.

    `source` is a key of `context.storage` or an object's URL, or several; what ends in .gz is unpacked. The first line
    of each file names the columns, in any order; with `columns` there is no such line. An empty field is NULL, on
    PostgreSQL a quoted one is empty text. `before` is SQL that runs first in the same transaction, e.g.
    `DELETE FROM t WHERE day = :day` with `parameters`: that makes a load that may be repeated. Memory is bounded
    whatever the size: the files are read in a thread of their own, a little ahead of the database. The value is
    {"files", "bytes", "rows"}. Raises SQLError.
    """

    template_fields = ("source", "table", "before", "parameters")

    def __init__(
        self,
        task_id: str,
        *,
        source: str | Sequence[str],
        connection: str | Connection,
        table: str,
        columns: Sequence[str] | None = None,
        delimiter: str = ",",
        before: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.source = source
        self.connection = connection
        self.table = table
        self.columns = None if columns is None else list(columns)
        self.delimiter = delimiter
        self.before = before
        self.parameters = dict(parameters or {})

    def execute(self, context: Context) -> dict[str, int]:
        """Load them all, or nothing."""
        total = {"files": 0, "bytes": 0, "rows": 0}
        with stoppable(), transaction(self.connection) as connection:
            if self.before:
                run(connection, self.before, self.parameters)
            load = self._copy if connection.dialect.driver == "psycopg" else self._insert
            for source in listed(self.source):
                storage, key = find(source, context)
                size = storage.head(key).size
                try:
                    with _Ahead(_read(storage, key)) as pieces:
                        rows = load(connection, pieces)
                except (SQLError, csv.Error, UnicodeDecodeError) as e:
                    raise SQLError(f"{storage.url_of(key)}: {e}") from e
                print(f"{storage.url_of(key)}: {rows} rows, {size} bytes into {self.table}")
                total = {"files": total["files"] + 1, "bytes": total["bytes"] + size, "rows": total["rows"] + rows}
        return total

    def _copy(self, connection: sqlalchemy.Connection, pieces: Iterator[bytes]) -> int:
        header, pieces = self._header(pieces)
        if not header:
            return 0
        names = ", ".join(map(quoted, header))
        statement = (
            f"COPY {quoted_table(self.table)} ({names}) FROM STDIN "
            f"(FORMAT csv, DELIMITER {_text(self.delimiter)}, ENCODING 'UTF8')"
        )
        with _psycopg_cursor(connection) as cursor:
            with cursor.copy(statement.encode()) as copy:
                for piece in pieces:
                    copy.write(piece)
            return int(cursor.rowcount)

    def _insert(self, connection: sqlalchemy.Connection, pieces: Iterator[bytes]) -> int:
        import sqlalchemy

        from runner.storage import as_file

        header, pieces = self._header(pieces)
        schema, _, name = self.table.rpartition(".")
        columns: list[Any] = [sqlalchemy.column(n) for n in header]
        table = sqlalchemy.table(name, *columns, schema=schema or None)
        with io.TextIOWrapper(as_file(pieces), "utf-8", newline="") as lines:
            rows = csv.reader(lines, delimiter=self.delimiter, strict=True)
            count = 0
            while batch := list(itertools.islice(rows, _BATCH)):
                try:
                    values = [dict(zip(header, (v or None for v in row), strict=True)) for row in batch if row]
                except ValueError:
                    raise SQLError(f"a row after row {count} does not have {len(header)} fields") from None
                connection.execute(table.insert(), values)
                count += len(values)
        return count

    def _header(self, pieces: Iterator[bytes]) -> tuple[list[str], Iterator[bytes]]:
        """The columns, and the pieces after them; no columns for an empty file."""
        if self.columns is not None:
            return self.columns, pieces
        start = b""
        for piece in pieces:
            start += piece
            if b"\n" in start or len(start) > _PIECE:
                break
        line, _, rest = start.partition(b"\n")
        text = line.decode("utf-8-sig", errors="replace").rstrip("\r")
        names = next(csv.reader([text], delimiter=self.delimiter), [])
        if start and (not all(names) or not names or len(line) > _PIECE):
            raise SQLError(f"its first line names no columns: {text[:80]!r}; give columns=[…] if it has none")
        return names, itertools.chain([rest] if rest else [], pieces)


class SQLToStorage(Operator):
    """Writes a query's rows to a CSV file whose first line names the columns: COPY on PostgreSQL, a cursor elsewhere.

    `target` is a key of `context.storage` or an object's URL; the file appears whole or not at all, packed if its name
    ends in .gz. `parameters` are bound to `:name` in the query. NULL becomes an empty field. Memory is bounded whatever
    the size. The value is {"url", "bytes", "rows"}. Raises SQLError.
    """

    template_fields = ("sql", "parameters", "target")

    def __init__(
        self,
        task_id: str,
        *,
        connection: str | Connection,
        sql: str,
        target: str,
        parameters: Mapping[str, Any] | None = None,
        delimiter: str = ",",
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.connection = connection
        self.sql = sql
        self.target = target
        self.parameters = dict(parameters or {})
        self.delimiter = delimiter

    def execute(self, context: Context) -> dict[str, Any]:
        """Run the query and write what it finds."""
        storage, key = find(self.target, context)
        count = _Count()
        with (
            stoppable(),
            transaction(self.connection) as connection,
            storage.writer(key) as plain_file,
            gzip.GzipFile(fileobj=plain_file, mode="wb") if key.endswith(".gz") else plain_file as file,
        ):
            unload = self._copy if connection.dialect.driver == "psycopg" else self._fetch
            for piece in unload(connection, count):
                file.write(piece)
        size = storage.head(key).size
        print(f"{count.rows} rows, {size} bytes into {storage.url_of(key)}")
        return {"url": storage.url_of(key), "bytes": size, "rows": count.rows}

    def _copy(self, connection: sqlalchemy.Connection, count: _Count) -> Iterator[bytes]:
        query = _bound(connection, self.sql, self.parameters).strip().rstrip(";")
        statement = f"COPY ({query}) TO STDOUT (FORMAT csv, HEADER, DELIMITER {_text(self.delimiter)}, ENCODING 'UTF8')"
        with _psycopg_cursor(connection) as cursor:
            with cursor.copy(statement.encode()) as copy:
                rows, batch = iter(copy), 1
                while piece := b"".join(itertools.islice(rows, batch)):
                    yield piece
                    # One row at a time is slow, and nobody knows how long the next ones are.
                    batch = max(1, min(2 * batch, batch * _PIECE // len(piece)))
            count.rows = int(cursor.rowcount)

    def _fetch(self, connection: sqlalchemy.Connection, count: _Count) -> Iterator[bytes]:
        import sqlalchemy

        result = connection.execution_options(stream_results=True, max_row_buffer=_BATCH).execute(
            sqlalchemy.text(self.sql), self.parameters
        )
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=self.delimiter, lineterminator="\n")
        writer.writerow(result.keys())
        for rows in result.partitions(_BATCH):
            writer.writerows([plain(value) for value in row] for row in rows)
            count.rows += len(rows)
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
        yield text.getvalue().encode()


class _Count:
    rows = 0


class _Ahead(Iterator[bytes]):
    """Iterates over pieces in a thread of its own, a few ahead of who takes them, within a `with` block."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self._queue: queue.Queue[bytes | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._left = False
        self._thread = threading.Thread(target=self._read, name="read-ahead", daemon=True)

    def __enter__(self) -> _Ahead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        while self._thread.is_alive():  # it may wait for room
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.05)

    def __next__(self) -> bytes:
        piece = self._queue.get()
        if piece is None:
            self._queue.put(None)  # asked again, it says the same
            if self._error is not None:
                raise self._error
            raise StopIteration
        return piece

    def _read(self) -> None:
        try:
            for piece in self._pieces:
                self._queue.put(piece)
                if self._left:
                    return
        except BaseException as e:
            self._error = e
        self._queue.put(None)


def _read(storage: Storage, key: str) -> Iterator[bytes]:
    if not key.endswith(".gz"):
        return storage.stream(key)
    file = gzip.GzipFile(fileobj=storage.reader(key))
    return iter(lambda: file.read(_PIECE), b"")


@contextlib.contextmanager
def _psycopg_cursor(connection: sqlalchemy.Connection) -> Iterator[psycopg.Cursor[Any]]:
    """A cursor of the driver itself, in the same transaction."""
    import psycopg

    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    try:
        with driver.cursor() as cursor:
            yield cursor
    except psycopg.Error as e:
        raise SQLError(str(e).strip()) from e


def _bound(connection: sqlalchemy.Connection, statement: str, parameters: Mapping[str, Any]) -> str:
    """The statement with its parameters quoted into it, for COPY, which can bind none."""
    import psycopg
    import sqlalchemy

    if not parameters:
        return statement
    compiled = sqlalchemy.text(statement).compile(dialect=connection.dialect)
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    return psycopg.ClientCursor(driver).mogrify(str(compiled).encode(), parameters)


def quoted_table(table: str) -> str:
    """`schema.table`, each part quoted."""
    return ".".join(map(quoted, table.split(".")))


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
