"""Outcomes on their way to the database: in batches, and on disk while the database is away."""

from __future__ import annotations

import json
import os
import queue
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from runner.state import transitions
from runner.state.doorbell import Doorbell
from runner.state.transitions import Message, Outcome
from runner.worker.threads import essential

log = structlog.get_logger(__name__)

BATCH = 200  # outcomes in one transaction
RETRY_SECONDS = 1.0


class Finisher:
    """One thread that ends attempts in the database and rings for what became due: the scheduler is not needed.

    Everything that has ended meanwhile goes into one transaction, so many short tasks cost few commits; nobody waits
    for it, so a slot takes its next task while the last one is being committed.
    """

    def __init__(self, engine: Engine, doorbell: Doorbell, spool: Path) -> None:
        self._engine = engine
        self._doorbell = doorbell
        self._spool = spool
        self._inbox: queue.SimpleQueue[tuple[Outcome, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = essential("finisher", self._loop)
        spool.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, outcome: Outcome, done: Callable[[], None]) -> None:
        """Call `done` once this outcome is committed, or refused because its lease was taken away."""
        self._inbox.put((outcome, done))

    def stop(self) -> None:
        """Commit what is left and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def recover(self) -> int:
        """Commit what an earlier start of this worker left on disk; returns how many outcomes."""
        outcomes = [_read(path) for path in sorted(self._spool.glob("*.json"))]
        if outcomes:
            self._doorbell.ring(self._deliver(outcomes, []))
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
            self._doorbell.ring(self._deliver([outcome for outcome, _ in entries], [done for _, done in entries]))

    def _deliver(self, outcomes: list[Outcome], done: list[Callable[[], None]]) -> list[Message]:
        """Commit, however long the database is away; returns what is to be rung for."""
        spooled = False
        messages: list[Message] = []
        while outcomes:
            try:
                messages = self._commit(outcomes)
                break
            except (DataError, IntegrityError) as e:
                # One of them cannot be stored. Alone it fails with the reason; the others must not wait for it.
                if len(outcomes) > 1:
                    messages = [m for o in outcomes for m in self._deliver([o], [])]
                    break
                log.error("outcome cannot be stored", action="finish", error=str(e.orig))
                outcomes = [_unstorable(outcomes[0], str(e.orig))]
            except DBAPIError as e:
                log.warning("database is away; outcomes are kept on disk", action="finish", error=str(e.orig))
                if not spooled:
                    self._keep(outcomes)
                    spooled = True
                threading.Event().wait(RETRY_SECONDS)
        if spooled:
            self._forget(outcomes)
        for call in done:
            call()
        return messages

    def _commit(self, outcomes: list[Outcome]) -> list[Message]:
        with self._engine.begin() as connection:
            accepted = transitions.finish(connection, outcomes)
            messages = transitions.dispatch(connection)
        for outcome in outcomes:
            if outcome.token not in accepted:
                log.warning(
                    "outcome refused: the lease was taken away",
                    action="finish",
                    task_instance=outcome.task_instance,
                    result=outcome.result,
                    error=outcome.error,
                )
        return messages

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


def _unstorable(outcome: Outcome, why: str) -> Outcome:
    error = f"what it returned cannot be stored: {' '.join(why.split())}".replace("\x00", "")
    return Outcome(outcome.task_instance, outcome.token, "failed", error=error[:1000], retry=False)


def _read(path: Path) -> Outcome:
    data = json.loads(path.read_text())
    return Outcome(**{**data, "token": uuid.UUID(data["token"])})
