"""Objects in S3: one listing a folder, whatever number of sensors wait there."""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from runner.scheduler.sense.answers import Answer, Answers, Found, Never, Waiting
from runner.storage import Storage

_WILD = re.compile(r"[*?\[]")
_PAGE = 1000  # keys an answer of S3 holds
_HEADS_AT_ONCE = 16


class S3:
    """Looks for keys. A folder's listing starts at the first key that is wanted and ends after the last."""

    def __init__(self) -> None:
        self._stores: dict[str, Any] = {}
        self._confirmed: set[str] = set()  # buckets that exist: the answer to a HEAD does not say

    def group(self, condition: dict[str, Any]) -> str:
        bucket, key = _split(condition["url"])
        return f"s3://{bucket}/{_literal(key).rpartition('/')[0]}"

    async def look(self, waiting: Sequence[Waiting], now: float) -> Answers:
        bucket = _split(waiting[0].condition["url"])[0]
        try:
            store = self._stores.get(bucket)
            if store is None:
                store = self._stores[bucket] = await asyncio.to_thread(lambda: Storage.open(f"s3://{bucket}").raw)
            found = await self._find(store, bucket, waiting)
        except (PermissionDeniedError, UnauthenticatedError):
            return _never(waiting, f"s3://{bucket}: not allowed; the schedulers' role must list and read it")
        except (BaseError, FileNotFoundError) as e:
            if "NoSuchBucket" in str(e):
                return _never(waiting, f"s3://{bucket}: there is no such bucket")
            raise
        return {id: Found(f"s3://{bucket}/{key}") for id, key in found.items()}

    async def _find(self, store: Any, bucket: str, waiting: Sequence[Waiting]) -> dict[int, str]:
        exact: dict[str, list[int]] = {}
        wild: list[tuple[str, re.Pattern[str], int]] = []
        for w in waiting:
            key = _split(w.condition["url"])[1]
            if _WILD.search(key):
                wild.append((_literal(key), re.compile(fnmatch.translate(key)), w.id))
            else:
                exact.setdefault(key, []).append(w.id)
        if len(exact) == 1 and not wild:
            return await self._heads(store, bucket, exact)
        found: dict[int, str] = {}
        first = min([*exact, *(literal for literal, _, _ in wild)])
        last = max([*exact, *(literal for literal, _, _ in wild)])
        folder = first[: len(_common([*exact, *(literal for literal, _, _ in wild)]))].rpartition("/")[0]
        pages = 0
        async for page in obstore.list(store, folder or None, offset=_before(first), chunk_size=_PAGE):
            self._confirmed.add(bucket)
            pages += 1
            for meta in page:
                key = meta["path"]
                for id in exact.pop(key, ()):
                    found[id] = key
                if wild:
                    wild = [w for w in wild if not _match(w, key, found)]
            key = page[-1]["path"] if page else ""
            if (key > last and not key.startswith(last)) or not (exact or wild):
                return found
            if exact and not wild and pages > len(exact):  # a crowded folder: asking for each costs less
                return found | await self._heads(store, bucket, {k: v for k, v in exact.items() if k > key})
        return found

    async def _heads(self, store: Any, bucket: str, keys: dict[str, list[int]]) -> dict[int, str]:
        room = asyncio.Semaphore(_HEADS_AT_ONCE)

        async def there(key: str) -> bool:
            async with room:
                try:
                    await obstore.head_async(store, key)
                except FileNotFoundError:
                    return False
                return True

        there_all = await asyncio.gather(*(there(key) for key in keys))
        if not any(there_all) and bucket not in self._confirmed:
            async for _ in obstore.list(store, next(iter(keys)), chunk_size=1):
                break
        self._confirmed.add(bucket)
        return {id: key for (key, ids), yes in zip(keys.items(), there_all, strict=True) if yes for id in ids}

    async def close(self) -> None:
        self._stores.clear()


def _split(url: str) -> tuple[str, str]:
    parts = urlsplit(url, allow_fragments=False)
    key = url.partition("://")[2].partition("/")[2]
    if parts.scheme != "s3" or not parts.netloc or not key:
        raise ValueError(f"{url!r} is not s3://bucket/key")
    return parts.netloc, key


def _literal(key: str) -> str:
    """What comes before the first wildcard."""
    return _WILD.split(key, maxsplit=1)[0]


def _common(keys: list[str]) -> str:
    low, high = min(keys), max(keys)
    n = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:n]


def _before(key: str) -> str | None:
    """Something that is just before a key in the order of keys; more of what precedes it does no harm."""
    if not key:
        return None
    rest, last = key[:-1], ord(key[-1])
    return f"{rest}{chr(last - 1)}~" if 0x21 < last < 0x7F else rest or None


def _match(wanted: tuple[str, re.Pattern[str], int], key: str, found: dict[int, str]) -> bool:
    literal, pattern, id = wanted
    if key.startswith(literal) and pattern.match(key):
        found[id] = key
        return True
    return False


def _never(waiting: Sequence[Waiting], why: str) -> dict[int, Answer]:
    return {w.id: Never(why) for w in waiting}
