"""Outcomes on their way to the database: in batches, and on disk while the database is away."""

from __future__ import annotations

import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from runner.state import transitions
from runner.state.doorbell import Doorbell
from runner.state.transitions import Message, Outcome
from runner.worker.attempts import Attempt, Attempts
from runner.worker.threads import essential

log = structlog.get_logger(__name__)

BATCH = 200  # outcomes in one transaction
RETRY_SECONDS = 1.0
LINGER_SECONDS = 0.002  # a transaction costs more than this, and many short tasks then share one


@dataclass
class _Ended:
    """An attempt whose task has ended, and the slot that waits for what is next."""

    outcome: Outcome
    attempt: Attempt | None = None
    committed: threading.Event = field(default_factory=threading.Event)
    next: Attempt | None = None


class Finisher:
    """One thread that ends attempts in the database and brings each freed slot its next one.

    Everything that has ended meanwhile goes into one transaction, which takes as many tasks as it frees slots: many
    short tasks cost few commits, and from one to the next there is neither a scheduler nor a message. `taking` says
    whether this worker may still take work.
    """

    def __init__(
        self,
        engine: Engine,
        doorbell: Doorbell,
        spool: Path,
        attempts: Attempts,
        *,
        node_id: str,
        queues: Callable[[], Sequence[str]],
        lease_seconds: float,
        taking: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._doorbell = doorbell
        self._spool = spool
        self._attempts = attempts
        self._node_id = node_id
        self._queues = queues
        self._lease = lease_seconds
        self._taking = taking
        self._inbox: queue.SimpleQueue[_Ended | None] = queue.SimpleQueue()
        self._thread = essential("finisher", self._loop)
        spool.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, attempt: Attempt, outcome: Outcome) -> Attempt | None:
        """Wait until this outcome is committed (or refused: its lease was taken away); returns the slot's next attempt.

        None if there is nothing to do, or this node may not take more.
        """
        ended = _Ended(outcome, attempt)
        self._inbox.put(ended)
        ended.committed.wait()
        return ended.next

    def stop(self) -> None:
        """Commit what is left and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def recover(self) -> int:
        """Commit what an earlier start of this worker left on disk; returns how many outcomes."""
        ended = [_Ended(_read(path)) for path in sorted(self._spool.glob("*.json"))]
        if ended:
            self._doorbell.ring(self._deliver(ended))
        for path in self._spool.glob("*.json"):
            path.unlink(missing_ok=True)
        return len(ended)

    def _loop(self) -> None:
        stopping = False
        while not stopping:
            batch = self._gather()
            stopping = None in batch
            self._doorbell.ring(self._deliver([ended for ended in batch if ended is not None]))

    def _gather(self) -> list[_Ended | None]:
        """What has ended; while others are at work, a moment is waited for those that end just now as well."""
        batch = [self._inbox.get()]
        until = time.monotonic() + LINGER_SECONDS
        while len(batch) < BATCH and batch[-1] is not None:
            try:
                left = until - time.monotonic()
                wait = left > 0 and len(batch) < len(self._attempts)
                batch.append(self._inbox.get(timeout=left) if wait else self._inbox.get_nowait())
            except queue.Empty:
                break
        return batch

    def _deliver(self, batch: list[_Ended]) -> list[Message]:
        """Commit, however long the database is away; returns what is to be rung for."""
        spooled = False
        messages: list[Message] = []
        while batch:
            try:
                messages = self._commit(batch)
                break
            except DBAPIError as e:
                if isinstance(e.orig, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
                    continue
                if isinstance(e, OperationalError | InterfaceError | InternalError) or e.connection_invalidated:
                    log.warning("database is away; outcomes are kept on disk", action="finish", error=str(e.orig))
                    if not spooled:
                        self._keep([ended.outcome for ended in batch])
                        spooled = True
                    threading.Event().wait(RETRY_SECONDS)
                    continue
                # One of them cannot be stored. Alone it fails with the reason; the others must not wait for it.
                if len(batch) > 1:
                    return [m for ended in batch for m in self._deliver([ended])]
                log.error("outcome cannot be stored", action="finish", error=str(e.orig))
                if batch[0].outcome.value is None:  # nor can its failure: somebody has to look at the log
                    threading.Event().wait(RETRY_SECONDS)
                batch[0].outcome = _unstorable(batch[0].outcome, str(e.orig))
        if spooled:
            self._forget([ended.outcome for ended in batch])
        return messages

    def _commit(self, batch: list[_Ended]) -> list[Message]:
        slots = sum(ended.attempt is not None for ended in batch) if self._taking() else 0
        messages: list[Message] = []
        with self._attempts.claiming() as before:
            with self._engine.begin() as connection:
                done = transitions.finish(
                    connection,
                    [ended.outcome for ended in batch],
                    node_id=self._node_id,
                    queues=self._queues(),
                    slots=slots,
                    lease_seconds=self._lease,
                )
                if done.more:
                    messages = transitions.dispatch(connection)
            following = [Attempt(claim, before + self._lease) for claim in done.claims]
            for attempt in following:
                self._attempts.add(attempt)
        for ended in batch:
            if ended.outcome.token not in done.accepted:
                log.warning(
                    "outcome refused: the lease was taken away",
                    action="finish",
                    task_instance=ended.outcome.task_instance,
                    result=ended.outcome.result,
                    error=ended.outcome.error,
                )
            if ended.attempt is not None:
                self._attempts.remove(ended.attempt)
                ended.next = following.pop(0) if following else None
            ended.committed.set()
        return messages

    def _keep(self, outcomes: list[Outcome]) -> None:
        for o in outcomes:
            path = self._path(o)
            part = path.with_suffix(".part")
            with part.open("w") as f:
                json.dump({**vars(o), "token": str(o.token), "expires": None}, f)
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
    return Outcome(**{**data, "token": uuid.UUID(data["token"]), "skip": tuple(data["skip"])})
