"""One attempt, from its message to its outcome."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from runner.authoring import Context
from runner.settings import Settings, SluiceError
from runner.state import nodes, transitions
from runner.state.transitions import Claim, Outcome
from runner.storage.logs import log_prefix
from runner.worker.children import BundleBroken, Child, ChildDied, Children, TaskTimeout
from runner.worker.finish import Finisher
from runner.worker.logs import LogShipper

log = structlog.get_logger(__name__)

# Killed from outside (out of memory, an operator) is nobody's failure, but a task that is killed every time must
# not go round for ever.
MAX_KILLS = 5
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # TERM: to a whole cgroup; the worker itself sends it at a timeout only


@dataclass
class Attempt:
    """An attempt this worker holds a lease for. `lease_until` is on the monotonic clock."""

    claim: Claim
    lease_until: float
    child: Child | None = None
    finishing: bool = False  # its task has ended, the outcome is on its way to the database
    abandoned: str | None = None  # why its outcome does not count any more

    def abandon(self, why: str) -> None:
        """Stop it at once: the lease is lost, another attempt may start."""
        self.abandoned = why
        if self.child:
            self.child.kill()


class Attempts:
    """What is running here, by fencing token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: dict[uuid.UUID, Attempt] = {}

    def add(self, attempt: Attempt) -> None:
        with self._lock:
            self._by_token[attempt.claim.token] = attempt

    def remove(self, attempt: Attempt) -> None:
        with self._lock:
            self._by_token.pop(attempt.claim.token, None)

    def all(self) -> list[Attempt]:
        with self._lock:
            return list(self._by_token.values())

    def __len__(self) -> int:
        return len(self._by_token)


class Executor:
    """Claims attempts and runs them; called by as many threads as the node has slots."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        children: Children,
        finisher: Finisher,
        shipper: LogShipper,
        refused: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._children = children
        self._finisher = finisher
        self._shipper = shipper
        self._refused = refused
        self._logs = settings.home / "log" / "tasks"
        self._logs.mkdir(parents=True, exist_ok=True)
        self.attempts = Attempts()

    def execute(self, task_instance: int, attempt_number: int) -> None:
        """Answer one message. A message with nothing to claim behind it is dropped in silence."""
        attempt = self._claim(task_instance, attempt_number)
        if attempt is None:
            return
        try:
            outcome = self._run(attempt)
        except BaseException:
            self.attempts.remove(attempt)  # a bug here: the lease runs out and the task is handed on
            raise
        attempt.finishing = True
        if attempt.abandoned:
            log.warning("attempt abandoned", action="execute", why=attempt.abandoned, **_names(attempt.claim))
            self.attempts.remove(attempt)
        else:
            # Held until it is committed, so that its lease is renewed and the node is not idle before.
            self._finisher.finish(outcome, lambda: self.attempts.remove(attempt))

    def _claim(self, task_instance: int, attempt_number: int) -> Attempt | None:
        lease = self._settings.lease_seconds
        node_id = self._settings.node_id
        before = time.monotonic()  # the lease counts from before the statement: never longer than the database's
        try:
            with self._engine.begin() as connection:
                claim = transitions.claim(
                    connection, task_instance, attempt_number, node_id=node_id, lease_seconds=lease
                )
            if claim is None:
                self._release_if_draining(task_instance, attempt_number)
                return None
        except DBAPIError as e:
            # The message is gone, the row is still queued: a scheduler sends it again. If the claim was committed
            # and only the answer lost, the lease is never renewed and runs out.
            log.warning("claim failed", action="claim", task_instance=task_instance, error=str(e.orig))
            return None
        attempt = Attempt(claim, before + lease)
        self.attempts.add(attempt)
        return attempt

    def _release_if_draining(self, task_instance: int, attempt_number: int) -> None:
        with self._engine.begin() as connection:
            if nodes.is_ready(connection, self._settings.node_id):
                return
            transitions.release(connection, task_instance, attempt_number)
        self._refused()  # stop consuming now, or this worker may get the same task again and again until it is told

    def _run(self, attempt: Attempt) -> Outcome:
        claim = attempt.claim
        prefix = log_prefix(claim.dag_id, str(claim.run_id), claim.task_id, claim.attempt)
        path = self._logs / f"{claim.token}.log"
        self._shipper.follow(path, prefix)
        try:
            return self._run_in_child(attempt, path, prefix)
        except TaskTimeout as e:
            return _failed(claim, str(e))
        except (BundleBroken, SluiceError) as e:
            return _failed(claim, f"bundle {claim.bundle_version} does not load on {self._settings.node_id}: {e}")
        except ChildDied as e:
            if e.signal in FROM_OUTSIDE and claim.interruptions < MAX_KILLS:
                return Outcome(claim.task_instance, claim.token, "interrupted", error=str(e))
            return _failed(claim, str(e))
        finally:
            attempt.child = None
            self._shipper.close(path)

    def _run_in_child(self, attempt: Attempt, log_path: Path, prefix: str) -> Outcome:
        claim = attempt.claim
        with self._children.lend(claim.bundle_version) as child:
            attempt.child = child
            if attempt.abandoned:  # between the claim and here
                raise ChildDied(attempt.abandoned)
            request = {
                "context": self._context(claim, prefix).to_json(),
                "inputs": claim.inputs,
                "log": str(log_path),
                "lease": attempt.lease_until - time.monotonic(),
            }
            answer = child.run(request, claim.timeout_seconds)
        return Outcome(
            claim.task_instance,
            claim.token,
            answer["result"],
            value=answer.get("value"),
            error=answer.get("error"),
        )

    def _context(self, claim: Claim, log_prefix: str) -> Context:
        settings = self._settings
        return Context(
            dag_id=claim.dag_id,
            run_id=str(claim.run_id),
            task_id=claim.task_id,
            logical_date=claim.logical_date,
            interval_start=claim.interval_start,
            interval_end=claim.interval_end,
            try_number=claim.try_number,
            attempt=claim.attempt,
            params=claim.params,
            node=settings.node_id,
            release=settings.release,
            bundle_version=claim.bundle_version,
            log_url=f"{settings.storage_url.rstrip('/')}/{log_prefix}",
            storage_url=settings.storage_url,
            artifacts_url=settings.artifacts_url,
        )


def _failed(claim: Claim, error: str) -> Outcome:
    return Outcome(claim.task_instance, claim.token, "failed", error=error)


def _names(claim: Claim) -> dict[str, Any]:
    return {"dag": claim.dag_id, "run": claim.run_id, "task": claim.task_id, "attempt": claim.attempt}
