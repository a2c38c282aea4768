"""Connections and variables by name: what a pipeline needs to know of its environment and must not carry itself.

A running task has a provider, a callable `(kind, name) -> dict | None` with kind "connection" or "variable": for a
connection it answers the fields of `Connection` (without `name`), for a variable `{"value": …}`, None for what it does
not know; what it raises is what the task sees. `install` sets it for a process, `providing` for a block. Next are the
environment variables `SLUICE_CONN_<NAME>` (a URL) and `SLUICE_VAR_<NAME>` (text), the name in capitals with `_` for
everything that is not a letter or a digit.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

Kind = Literal["connection", "variable"]
Provider = Callable[[Kind, str], "Mapping[str, Any] | None"]

# What people write in URLs, and what SQLAlchemy wants to hear.
_DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
_NOTHING: Any = object()


class NotFoundError(LookupError):
    """There is no connection or variable of this name."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where a system is and how to log in. `type` is the scheme of its URL; `schema` the database or first path part.

    `extra` are further settings, the query of a URL. The password is in no repr.
    """

    name: str = ""
    type: str = ""
    host: str = ""
    port: int | None = None
    login: str = ""
    password: str = field(default="", repr=False)
    schema: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_url(cls, url: str, name: str = "") -> Connection:
        """`type://login:password@host:port/schema?extra`, each part percent-encoded. Raises ValueError."""
        try:
            # `#` is a letter here: in passwords, and in the channels of chat services
            parts = urlsplit(url, allow_fragments=False)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if not parts.scheme or "://" not in url:
            # not the value: there may be a password in it
            raise ValueError(f"connection {name!r} is no URL: type://login:password@host:port/schema?extra is one")
        return cls(
            name=name,
            type=parts.scheme,
            # not .hostname, which is in small letters: for some services the host is a token
            host=unquote(re.sub(r"^\[(.*)\]$", r"\1", re.sub(r":\d*$", "", parts.netloc.rpartition("@")[2]))),
            port=port,
            login=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            schema=unquote(parts.path.removeprefix("/")),
            extra=dict(parse_qsl(parts.query, keep_blank_values=True)),
        )

    def url(self, *, driver: str | None = None) -> str:
        """The URL, password included, as SQLAlchemy takes it; `driver` replaces the type, e.g. `postgresql`.

        A type without a driver gets the one that is installed: `postgresql` becomes `postgresql+psycopg`.
        """
        who = quote(self.login, safe="")
        if self.password:
            who += f":{quote(self.password, safe='')}"
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        where = host + (f":{self.port}" if self.port is not None else "")
        scheme = driver or _DRIVERS.get(self.type, self.type)
        query = f"?{urlencode(self.extra, quote_via=quote)}" if self.extra else ""
        return f"{scheme}://{who + '@' if who else ''}{where}/{quote(self.schema)}{query}"


_provider: contextvars.ContextVar[Provider | None] = contextvars.ContextVar("sluice_lookup", default=None)
_of_process: list[Provider] = []


def install(provider: Provider) -> None:
    """Answer from this provider in the whole process, in threads that a task starts too: what a worker's child does."""
    _of_process[:] = [provider]


@contextlib.contextmanager
def providing(provider: Provider) -> Iterator[None]:
    """Answer `connection` and `variable` from this provider for the length of the block."""
    token = _provider.set(provider)
    try:
        yield
    finally:
        _provider.reset(token)


def given(connections: Mapping[str, Connection | str], variables: Mapping[str, Any]) -> Provider:
    """A provider of fixed values, for tests; a connection may be a URL."""

    def provide(kind: Kind, name: str) -> Mapping[str, Any] | None:
        if kind == "variable":
            return {"value": variables[name]} if name in variables else None
        found = connections.get(name)
        return None if found is None else _fields(Connection.from_url(found, name) if isinstance(found, str) else found)

    return provide


def connection(name: str) -> Connection:
    """The connection of this name. Raises NotFoundError."""
    found = _ask("connection", name)
    if found is not None:
        known = {f.name for f in dataclasses.fields(Connection)}
        return Connection(**{**{k: v for k, v in found.items() if k in known and v is not None}, "name": name})
    url = os.environ.get(_environment_name("CONN", name))
    if url is not None:
        return Connection.from_url(url, name)
    raise _not_found("connection", "CONN", name)


def resolve(where: str | Connection) -> Connection:
    """A connection given as itself, as a URL or by name. Raises NotFoundError, ValueError."""
    if isinstance(where, Connection):
        return where
    return Connection.from_url(where) if "://" in where else connection(where)


def variable(name: str, default: Any = _NOTHING) -> Any:
    """The value of this variable, else `default`. Raises NotFoundError where there is neither."""
    found = _ask("variable", name)
    if found is not None:
        return found["value"]
    value = os.environ.get(_environment_name("VAR", name))
    if value is not None:
        return value
    if default is not _NOTHING:
        return default
    raise _not_found("variable", "VAR", name)


def _ask(kind: Kind, name: str) -> Mapping[str, Any] | None:
    provider = _provider.get() or (_of_process[0] if _of_process else None)
    return None if provider is None else provider(kind, name)


def _environment_name(kind: str, name: str) -> str:
    return f"SLUICE_{kind}_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}"


def _not_found(kind: str, short: str, name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no {kind} {name!r}: define it with `runner objects apply`, "
        f"or set {_environment_name(short, name)} in the environment"
    )


def _fields(found: Connection) -> dict[str, Any]:
    return {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
