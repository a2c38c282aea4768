"""What a URL answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import httpx

from runner.authoring.lookup import Connection, NotFoundError, resolve
from runner.scheduler.sense.answers import Answer, Answers, Found, Never, NotYet, Waiting

_NOT_YET = (404, 408, 409, 423, 425, 429)
_SECONDS = 20.0
_BODY_MAX = 4 * 1024 * 1024  # bytes of an answer that are looked at


class Http:
    """Asks each different question once; connections are kept."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    def group(self, condition: dict[str, Any]) -> str:
        return f"http {condition!r}"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=_SECONDS, follow_redirects=True)
        answer = await self._ask(self._client, waiting[0].condition)
        return {w.id: answer for w in waiting}

    async def _ask(self, client: httpx.AsyncClient, condition: dict[str, Any]) -> Answer:
        try:
            url, auth = await asyncio.to_thread(_where, condition)
        except (NotFoundError, ValueError) as e:
            return Never(str(e))
        shown = re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
        try:
            async with client.stream(condition["method"], url, headers=condition["headers"], auth=auth) as response:
                if response.status_code in _NOT_YET:
                    return NotYet()
                if response.status_code >= 500:
                    return NotYet(f"{shown}: {response.status_code} {response.reason_phrase}")
                if response.status_code >= 400:
                    return Never(f"{shown}: {response.status_code} {response.reason_phrase}")
                if condition["contains"] is None and condition["json"] is None:
                    return Found()
                body = b""
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _BODY_MAX:
                        return NotYet(f"{shown}: its answer is larger than {_BODY_MAX >> 20} MiB")
                return _judge(condition, httpx.Response(200, content=body, headers={}), shown)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as e:
            return Never(f"{shown}: {e}")
        except httpx.HTTPError as e:
            return NotYet(f"{shown}: {str(e) or type(e).__name__}")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def _where(condition: dict[str, Any]) -> tuple[str, tuple[str, str] | None]:
    if condition["connection"] is None:
        return condition["url"], None
    c = resolve(condition["connection"])
    base = Connection(type=c.type, host=c.host, port=c.port, schema=c.schema).url().rstrip("/")
    url = f"{base}/{condition['url'].lstrip('/')}" if condition["url"] else base
    return url, (c.login, c.password) if c.login else None


def _judge(condition: dict[str, Any], response: httpx.Response, shown: str) -> Answer:
    if condition["contains"] is not None and condition["contains"] not in response.text:
        return NotYet()
    if condition["json"] is None:
        return Found()
    try:
        value = response.json()
    except ValueError:
        return NotYet(f"{shown}: its answer is no JSON")
    wanted = condition["json"].items()
    there = isinstance(value, dict) and all(k in value and value[k] == v for k, v in wanted)
    return Found(value) if there else NotYet()
