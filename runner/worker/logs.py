"""Task output on its way from the node's disk to the log store, while the task runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
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
FOLDERS = 32  # who makes a file in a folder waits for who makes or removes another one there
LOST = "\n[the end of this log was lost with its worker: it may have held secrets]\n"


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

    def holds_secrets(self, path: Path) -> None:
        """Its task was told secrets: should this worker be killed, nobody knows what is to be left out."""
        _mark(path).touch()

    def recover(self, folder: Path, prefix_of: Callable[[int, int], str | None]) -> int:
        """Upload what an earlier start of this worker, that was killed, has left in this folder; returns how many logs.

        Parts are as long as what they were made of, so what is stored says where to go on. A log with secrets cannot
        be masked any more: its end is given up, and the log says so.
        """
        left = sorted(folder.glob("*/*.log"))
        for path in left:
            task_instance, _, attempt = path.stem.partition("-")
            prefix = prefix_of(int(task_instance), int(attempt))
            if prefix is not None:
                stored = [part.size for part in self._storage.list(prefix)]
                writer = LogWriter(self._storage, prefix)
                writer.next_part = len(stored)
                with self._lock:
                    if _mark(path).exists():
                        writer.append(LOST.encode())
                        self._files[path] = _Followed(writer, offset=path.stat().st_size, closed=True)
                    else:
                        self._files[path] = _Followed(writer, offset=sum(stored), closed=True)
            else:
                _remove(path)
        return len(left)

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
        if _size(path) > followed.offset:
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
            if followed.mask:
                _remove(path)


def log_file(folder: Path, task_instance: int, attempt: int) -> Path:
    """Where an attempt's output is written on this node: `recover` knows it by its name."""
    return folder / str(task_instance % FOLDERS) / f"{task_instance}-{attempt}.log"


def make_folders(folder: Path) -> None:
    """What `log_file` names."""
    for number in range(FOLDERS):
        (folder / str(number)).mkdir(parents=True, exist_ok=True)


def _mark(path: Path) -> Path:
    return path.with_suffix(".secrets")


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116  (once for every task)
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    _mark(path).unlink(missing_ok=True)
