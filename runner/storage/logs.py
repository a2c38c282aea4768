"""Task logs: numbered parts that are only ever added, so a running task's log can be followed by anyone.

`logs/<dag_id>/<run_id>/<task_id>[<map_index>]/<attempt>/000000.log`, `000001.log`, …; one object per flush.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from runner.storage.store import Storage


def log_prefix(dag_id: str, run_id: int | str, task_id: str, attempt: int, map_index: int = -1) -> str:
    """The folder of one attempt's log; an item of a mapped task has `task_id[map_index]`."""
    item = "" if map_index < 0 else f"[{map_index}]"
    return f"logs/{dag_id}/{run_id}/{task_id}{item}/{attempt}"


class LogWriter:
    """Writes one attempt's log. One writer per attempt: the numbers are its own."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self.storage = storage
        self.prefix = prefix.rstrip("/")
        self.next_part = 0
        self._tail = b""

    def append(self, data: bytes) -> None:
        """Store `data` as the next part. On an error it is kept and goes out with the next call.

        A character cut in two at the end waits for its rest, so each part is text by itself.
        """
        whole, self._tail = _split(self._tail + data)
        try:
            self._write(whole)
        except BaseException:
            self._tail = whole + self._tail
            raise

    def close(self) -> None:
        """Store what is left."""
        self._write(self._tail)
        self._tail = b""

    def _write(self, data: bytes) -> None:
        if data:
            self.storage.put(f"{self.prefix}/{self.next_part:06d}.log", data)
            self.next_part += 1


def read_log(storage: Storage, prefix: str, from_part: int = 0, *, limit: int = 4_000_000) -> tuple[str, int]:
    """The text from part `from_part` on and the part to go on with; an empty text means: nothing new yet.

    Stops after about `limit` bytes; call again to go on. Bytes that are no UTF-8 are shown as replacements.
    """
    prefix = prefix.rstrip("/")
    after = f"{prefix}/{from_part - 1:06d}.log" if from_part > 0 else ""
    pieces: list[bytes] = []
    size = 0
    part = from_part
    for stored in storage.list(prefix, after=after):
        # In order and without a gap: a part that is not visible yet must not be stepped over.
        if size >= limit or PurePosixPath(stored.key).name != f"{part:06d}.log":
            break
        pieces.append(storage.get(stored.key))
        size += len(pieces[-1])
        part += 1
    return b"".join(pieces).decode(errors="replace"), part


def _split(data: bytes) -> tuple[bytes, bytes]:
    """(data up to the last whole UTF-8 character, the first bytes of one that is not complete)."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:  # inside a character: its first byte is further left
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return (data[:-back], data[-back:]) if length > back else (data, b"")
    return data, b""
