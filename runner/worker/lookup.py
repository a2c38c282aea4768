"""A task asks its worker for connections and variables: the worker reads the database and the secrets."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from runner.authoring.lookup import Connection
from runner.objects import Cipher, Resolver, fields
from runner.objects.secrets import secrets_in
from runner.settings import SluiceError
from runner.state import objects
from runner.worker.mask import Mask

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 60.0  # for a database that is away: a failover must fail no task


class Lookup:
    """Answers what tasks ask. Thread-safe."""

    def __init__(self, engine: Engine, secret_key: str, region: str) -> None:
        self._engine = engine
        self._cipher = Cipher(secret_key)
        self._resolver = Resolver(region)

    def answer(self, ask: dict[str, Any], mask: Mask) -> dict[str, Any]:
        """The answer to one question, the secrets in it added to the mask first. Errors are answers too."""
        try:
            return {"id": ask["id"], "found": self._found(ask["kind"], ask["name"], mask)}
        except SluiceError as e:
            return {"id": ask["id"], "error": e.message}
        except DBAPIError:
            return {"id": ask["id"], "error": f"the database was away for {PATIENCE_SECONDS:g} s"}

    def _found(self, kind: str, name: str, mask: Mask) -> dict[str, Any] | None:
        row = self._row(kind, name)
        if row is None:
            return None
        opened = self._cipher.open(row.value)
        resolved = self._resolver.resolve(opened)
        mask.add(secrets_in(resolved) | self._resolver.parts(opened))
        value = fields(resolved)
        if kind == "variable":
            return {"value": value}
        return self._of_url(value["url"], name, mask) if "url" in value else dict(value)

    def _row(self, kind: str, name: str) -> objects.Row | None:
        if kind not in ("connection", "variable"):
            raise SluiceError(f"there is nothing of kind {kind!r}")
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._engine.begin() as connection:
                    return objects.find(connection, kind, name)  # type: ignore[arg-type]
            except DBAPIError as e:
                if time.monotonic() > end:
                    raise
                log.warning("lookup waits for the database", action="lookup", name=name, error=str(e.orig))
                time.sleep(1.0)

    @staticmethod
    def _of_url(url: str, name: str, mask: Mask) -> dict[str, Any]:
        try:
            connection = Connection.from_url(url, name)
        except ValueError as e:
            raise SluiceError(str(e)) from None
        mask.add([connection.password])
        return dataclasses.asdict(connection)
