"""Task output on its way from the node's disk to the log store, while the task runs."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import structlog

from runner.settings import SluiceError
from runner.storage import Storage
from runner.storage.logs import LogWriter
from runner.worker.mask import Mask
from runner.worker.threads import essential

log = structlog.get_logger(__name__)

FLUSH_SECONDS = 1.0
PART_BYTES = 4 << 20


@dataclass
class _Followed:
    writer: LogWriter
    offset: int = 0
    mask: Mask | None = None
    held: bytes = b""  # may be the beginning of a secret
    closed: bool = False


class LogShipper:
    """One thread that uploads what was written to the attempts' logs. A store that is away is tried again."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._files: dict[Path, _Followed] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = essential("logs", self._loop)

    def start(self) -> None:
        self._thread.start()

    def follow(self, path: Path, prefix: str) -> None:
        """Upload what appears in this file from now on, as parts under `prefix`."""
        with self._lock:
            self._files[path] = _Followed(LogWriter(self._storage, prefix))

    def mask(self, path: Path, mask: Mask) -> None:
        """Leave these secrets out of what is uploaded from now on."""
        with self._lock:
            self._files[path].mask = mask

    def close(self, path: Path) -> None:
        """The attempt is over: upload the rest, then remove the file."""
        with self._lock:
            self._files[path].closed = True

    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Wait until all closed logs are in the store. False if that took too long."""
        for _ in range(int(timeout_seconds / 0.1)):
            self._wake.set()
            with self._lock:
                if not any(f.closed for f in self._files.values()):
                    return True
            threading.Event().wait(0.1)
        return False

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopping:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            with self._lock:
                files = list(self._files.items())
            for path, followed in files:
                try:
                    self._ship(path, followed)
                except (SluiceError, OSError) as e:
                    log.warning("log store is away; task logs are kept", action="logs", error=str(e))
                    break

    def _ship(self, path: Path, followed: _Followed) -> None:
        closed = followed.closed  # before the read: what comes after it cannot be missed
        followed.writer.append(b"")  # what a store that was away has not taken yet
        if path.exists():
            with path.open("rb") as f:
                f.seek(followed.offset)
                while data := f.read(PART_BYTES):
                    followed.offset += len(data)  # the writer keeps it from here on, also if the store is away
                    if followed.mask:
                        data, followed.held = followed.mask.part(followed.held + data)
                    followed.writer.append(data)
        if closed:
            if followed.mask:
                rest, followed.held = followed.mask.whole(followed.held), b""
                followed.writer.append(rest)
            followed.writer.close()
            with self._lock:
                self._files.pop(path, None)
            path.unlink(missing_ok=True)
