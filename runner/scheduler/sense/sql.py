"""Queries on other databases: each different question once, however many sensors ask it."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, ProgrammingError

from runner.authoring.lookup import NotFoundError, resolve
from runner.scheduler.sense.answers import Answers, Found, Never, Waiting

_AT_ONCE = 8
_SECONDS = 30.0  # longest that one query may take


class Sql:
    """Asks with few connections, each kept for some minutes."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sense-sql")

    def group(self, condition: dict[str, Any]) -> str:
        return f"sql {json.dumps(condition, sort_keys=True)}"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        condition = waiting[0].condition
        try:
            url = await asyncio.to_thread(lambda: resolve(condition["connection"]).url())
            engine = self._engines.get(url)
            if engine is None:
                engine = self._engines[url] = _engine(url)
            loop = asyncio.get_running_loop()
            value = await loop.run_in_executor(self._threads, _ask, engine, condition)
        except (NotFoundError, NoSuchModuleError, ArgumentError, ModuleNotFoundError) as e:
            answer: Found | Never = Never(_line(e))
        except ProgrammingError as e:  # no such table or column, wrong syntax, not allowed
            answer = Never(_line(e.orig or e))
        else:
            if not value:
                return {}
            answer = Found(value)
        return {w.id: answer for w in waiting}

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for engine in self._engines.values():
            engine.dispose()


def _engine(url: str) -> Engine:
    options: dict[str, Any] = {}
    if url.startswith("postgresql"):
        options["connect_args"] = {"connect_timeout": 10, "options": f"-c statement_timeout={int(_SECONDS * 1000)}"}
    return create_engine(url, pool_size=2, max_overflow=_AT_ONCE, pool_pre_ping=True, pool_recycle=300, **options)


def _ask(engine: Engine, condition: dict[str, Any]) -> Any:
    with engine.connect() as connection:
        row = connection.execute(text(condition["sql"]), condition["parameters"]).first()
        connection.rollback()
    return None if row is None else _plain(row[0])


def _plain(value: Any) -> Any:
    if isinstance(value, decimal.Decimal):
        return str(value) if value else 0
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
