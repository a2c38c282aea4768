"""How far a roll is, in a file beside the fleet's: written before and after each step, so that it can be resumed."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from runner.rollout.celery_fleet.plan import Action, Record
from runner.settings import RefusedError, SluiceError


class Journal:
    """The state of one roll. Used by many threads; each write replaces the whole file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.release = ""
        self.by = ""
        self.began = ""
        self.hosts: dict[str, Record] = {}
        self._lock = threading.Lock()
        if path.exists():
            self._read()

    @property
    def open(self) -> bool:
        """Whether a roll was begun and has not come to its end."""
        return bool(self.began)

    def begin(self, release: str, by: str) -> None:
        """Write down that a roll begins; one that is resumed keeps its beginning."""
        if not self.open:
            self.release, self.by = release, by
            self.began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        with self._lock:
            self._write()

    def of(self, host: str) -> Record:
        """How far a host is."""
        return self.hosts.get(host, Record())

    def mark(self, host: str, action: Action | None, *, over: bool, result: str = "") -> None:
        """Write down that an action begins, or is over."""
        before = self.of(host)
        stopping = before.stopping or action in ("stop", "terminate")
        self._put(host, replace(before, action=action, over=over, stopping=stopping, result=result))

    def queues(self, host: str, queues: Mapping[str, Sequence[str]]) -> None:
        """Write down what the workers of a host consume, before they are told to stop."""
        known = dict(self.of(host).queues)
        self._put(host, replace(self.of(host), queues={**known, **{w: list(q) for w, q in queues.items() if q}}))

    def close(self) -> None:
        """The roll has come to its end: there is nothing to resume."""
        self.path.unlink(missing_ok=True)
        self.began = ""

    def _put(self, host: str, record: Record) -> None:
        with self._lock:
            self.hosts[host] = record
            self._write()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text())
            self.release, self.by, self.began = found["release"], found["by"], found["began"]
            self.hosts = {host: Record(**record) for host, record in found["hosts"].items()}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise SluiceError(
                f"{self.path} cannot be read: {e}", "it is the state of a roll; remove it to begin from the start"
            ) from None

    def _write(self) -> None:
        content = {
            "release": self.release,
            "by": self.by,
            "began": self.began,
            "hosts": {host: asdict(record) for host, record in self.hosts.items()},
        }
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w") as file:
            json.dump(content, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)


def journal_of(spec: Path) -> Path:
    """The state file of a fleet's file: shop.yaml → shop.roll.json."""
    return spec.with_name(f"{spec.stem}.roll.json")


@contextlib.contextmanager
def alone(spec: Path) -> Iterator[None]:
    """Hold the fleet's file, so that no second roll of it begins on this machine. Raises RefusedError."""
    with spec.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state = Journal(journal_of(spec))
            raise RefusedError(
                f"{spec} is being rolled by {state.by or 'somebody'} since {state.began or 'a moment ago'}",
                "wait for it, or stop it with Ctrl-C: then the same command goes on",
            ) from None
        yield
