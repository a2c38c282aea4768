"""Files by URL or by key, and copying them: a local directory and S3 alike."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from runner.authoring.context import Context
from runner.authoring.operators.base import Operator

if TYPE_CHECKING:
    from runner.storage import Storage

_AT_ONCE = 8  # files of a folder


def find(where: str, context: Context) -> tuple[Storage, str]:
    """The store and the key of `s3://bucket/key`, `file:///dir/name`, or of a key of the task's own storage."""
    from runner.storage import Storage

    return Storage.locate(where) if "://" in where else (context.storage, where)


class CopyOperator(Operator):
    """Copies a file, several, or a folder: between S3 buckets, directories and the storage of tasks, in any direction.

    `source` and `target` are URLs (`s3://bucket/key`, `file:///dir/name`) or keys of `context.storage`. One that ends
    with `/` is a folder: everything under it is copied, several files at once, each in bounded memory and each whole
    or not at all. `delete_source` makes it a move. The value is the list of the URLs that were written.
    """

    template_fields = ("source", "target")

    def __init__(
        self,
        task_id: str,
        *,
        source: str | Sequence[str],
        target: str,
        delete_source: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.source = source
        self.target = target
        self.delete_source = delete_source

    def execute(self, context: Context) -> list[str]:
        """Copy them; the first file that cannot be copied ends it."""
        pairs = [pair for source in listed(self.source) for pair in self._pairs(source, context)]
        if len(pairs) > 1 and not self.target.endswith("/"):
            raise ValueError(f"target {self.target!r} must be a folder, ending with /, for several files")

        def one(pair: tuple[Storage, str, str]) -> str:
            storage, key, target = pair
            into, to = find(target, context)
            same = into.url == storage.url
            storage.copy(key, to, into=None if same else into)
            if self.delete_source and not (same and key == to):
                storage.delete(key)
            print(f"{storage.url_of(key)} -> {into.url_of(to)}")
            return into.url_of(to)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                return list(pool.map(one, pairs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _pairs(self, source: str, context: Context) -> list[tuple[Storage, str, str]]:
        folder = self.target.endswith("/")
        if not source.endswith("/"):
            storage, key = find(source, context)
            return [(storage, key, self._inside(key.rpartition("/")[2]) if folder else self.target)]
        storage, inside = find(f"{source}x", context)  # where a file in that folder would be
        prefix = inside.rpartition("/")[0]
        found = [stored.key for stored in storage.list(prefix)]
        if not found:
            from runner.storage import MissingError

            raise MissingError(f"there is nothing in {source}")
        cut = len(prefix) + 1 if prefix else 0
        return [(storage, key, self._inside(key[cut:])) for key in found]

    def _inside(self, name: str) -> str:
        return self.target + (quote(name) if self.target.startswith("file:") else name)


def listed(source: str | Sequence[str]) -> list[str]:
    """One or several, as a list."""
    return [source] if isinstance(source, str) else list(source)
