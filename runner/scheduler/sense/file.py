"""Files, as this scheduler's machine sees them."""

from __future__ import annotations

import asyncio
import glob
from collections.abc import Sequence
from typing import Any

from runner.scheduler.sense.answers import Answer, Answers, Found, Waiting


class File:
    """Looks for paths, all of a folder in one go."""

    def group(self, condition: dict[str, Any]) -> str:
        if not condition["path"].startswith("/"):
            raise ValueError(f"path {condition['path']!r} is not absolute")
        return f"file {condition['path'].rpartition('/')[0]}"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        return await asyncio.to_thread(_find, waiting)

    async def close(self) -> None: ...


def _find(waiting: Sequence[Waiting]) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    for w in waiting:
        paths = glob.glob(w.condition["path"], recursive=True)  # noqa: PTH207  (a pattern with a folder in front)
        if paths:
            found[w.id] = Found(min(paths))
    return found
