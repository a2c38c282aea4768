"""Updates of assets: all that are waited for, with one statement."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine

from runner.scheduler.sense.answers import Answer, Answers, Found, Waiting
from runner.state import assets


class Assets:
    """Asks our own database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def group(self, condition: dict[str, Any]) -> str:
        if dt.datetime.fromisoformat(condition["since"]).tzinfo is None:
            raise ValueError(f"since {condition['since']!r} has no time zone")
        return "asset"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        return await asyncio.to_thread(self._look, waiting)

    def _look(self, waiting: Sequence[Waiting]) -> dict[int, Answer]:
        wanted = [{"id": w.id, "asset": w.condition["asset"], "since": w.condition["since"]} for w in waiting]
        with self._engine.begin() as connection:
            return {id: Found(event) for id, event in assets.first_since(connection, wanted).items()}

    async def close(self) -> None: ...
