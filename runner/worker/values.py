"""Return values on their way: small ones in the database, large ones in storage, by reference."""

from __future__ import annotations

import collections
import json
import threading
from typing import Any

from runner.settings import UsageError
from runner.state.transitions import Claim
from runner.state.transitions.records import REFERENCE
from runner.storage import Storage

KEPT = 4  # values read last: the items of a mapped task read the same one


class Values:
    """Stores and loads return values. `inline_bytes`: what is larger goes to storage; `max_bytes`: and no larger."""

    def __init__(self, storage: Storage, *, inline_bytes: int, max_bytes: int) -> None:
        self._storage = storage
        self._inline = inline_bytes
        self._max = max_bytes
        self._kept: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def store(self, claim: Claim, value: str | None) -> tuple[str | None, str | None]:
        """(JSON text, None) or (None, URL). Raises UsageError for a value that is too large."""
        if value is None or len(value) <= self._inline:
            return value, None
        if len(value) > self._max:
            raise UsageError(
                f"returned {len(value):,} bytes of JSON; at most {self._max:,} may go from task to task: "
                f"write it to storage and return where it is"
            )
        index = "" if claim.map_index < 0 else f"[{claim.map_index}]"
        key = f"values/{claim.dag_id}/{claim.run_id}/{claim.task_id}{index}/{claim.attempt}.json"
        self._storage.put(key, value.encode())
        return None, key

    def load(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values with those in storage filled in, also where they are items of a list."""
        return {name: self._filled(value) for name, value in values.items()}

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            if REFERENCE in value:
                whole = self._read(value[REFERENCE])
                return whole[value["index"]] if "index" in value else whole
            if value.keys() == {"value"}:  # an item of a mapped task
                return {"value": self._filled(value["value"])}
        if isinstance(value, list):
            return [self._filled(v) if isinstance(v, dict) and REFERENCE in v else v for v in value]
        return value

    def _read(self, key: str) -> Any:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = json.loads(self._storage.get(key))
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found
