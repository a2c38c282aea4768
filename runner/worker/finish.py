"""Outcomes on their way to the database: in batches, and on disk while the database is away."""

from __future__ import annotations

import json
import os
import queue
import threading
import uuid
from pathlib import Path

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from runner.state import transitions
from runner.state.doorbell import Doorbell
from runner.state.transitions import Outcome

log = structlog.get_logger(__name__)

BATCH = 200  # outcomes in one transaction
RETRY_SECONDS = 1.0


class Finisher:
    """One thread that ends attempts in the database and rings for what became due: the scheduler is not needed.

    Everything that has ended meanwhile goes into one transaction, so many short tasks cost few commits.
    """

    def __init__(self, engine: Engine, doorbell: Doorbell, spool: Path) -> None:
        self._engine = engine
        self._doorbell = doorbell
        self._spool = spool
        self._inbox: queue.SimpleQueue[tuple[Outcome, threading.Event] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="finisher", daemon=True)
        spool.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, outcome: Outcome) -> None:
        """Wait until this outcome is committed, or refused because its lease was taken away."""
        done = threading.Event()
        self._inbox.put((outcome, done))
        done.wait()

    def stop(self) -> None:
        """Commit what is left and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def recover(self) -> int:
        """Commit what an earlier start of this worker left on disk; returns how many outcomes."""
        outcomes = [_read(path) for path in sorted(self._spool.glob("*.json"))]
        if outcomes:
            self._commit(outcomes)
            self._forget(outcomes)
        return len(outcomes)

    def _loop(self) -> None:
        stopping = False
        while not stopping:
            batch = [self._inbox.get()]
            while len(batch) < BATCH:
                try:
                    batch.append(self._inbox.get_nowait())
                except queue.Empty:
                    break
            stopping = None in batch
            entries = [entry for entry in batch if entry is not None]
            self._deliver([outcome for outcome, _ in entries])
            for _, done in entries:
                done.set()

    def _deliver(self, outcomes: list[Outcome]) -> None:
        spooled = False
        while outcomes:
            try:
                self._commit(outcomes)
                break
            except DBAPIError as e:
                log.warning("database is away; outcomes are kept on disk", action="finish", error=str(e.orig))
                if not spooled:
                    self._keep(outcomes)
                    spooled = True
                threading.Event().wait(RETRY_SECONDS)
        if spooled:
            self._forget(outcomes)

    def _commit(self, outcomes: list[Outcome]) -> None:
        with self._engine.begin() as connection:
            accepted = transitions.finish(connection, outcomes)
            messages = transitions.dispatch(connection)
        self._doorbell.ring(messages)
        for outcome in outcomes:
            if outcome.token not in accepted:
                log.warning(
                    "outcome refused: the lease was taken away",
                    action="finish",
                    task_instance=outcome.task_instance,
                    result=outcome.result,
                    error=outcome.error,
                )

    def _keep(self, outcomes: list[Outcome]) -> None:
        for o in outcomes:
            path = self._path(o)
            part = path.with_suffix(".part")
            with part.open("w") as f:
                json.dump({**vars(o), "token": str(o.token)}, f)
                f.flush()
                os.fsync(f.fileno())
            part.rename(path)

    def _forget(self, outcomes: list[Outcome]) -> None:
        for o in outcomes:
            self._path(o).unlink(missing_ok=True)

    def _path(self, outcome: Outcome) -> Path:
        return self._spool / f"{outcome.token}.json"


def _read(path: Path) -> Outcome:
    data = json.loads(path.read_text())
    return Outcome(**{**data, "token": uuid.UUID(data["token"])})
