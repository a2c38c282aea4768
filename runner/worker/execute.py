"""One slot's work: an attempt, from its claim to its outcome, and the next."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from runner.authoring import Context
from runner.settings import Settings, SluiceError
from runner.state import nodes, transitions
from runner.state.transitions import Claim, Outcome, Result
from runner.storage.logs import log_prefix
from runner.worker.attempts import Attempt, Attempts
from runner.worker.children import BundleBroken, ChildDied, Children, TaskTimeout
from runner.worker.drain import Drain
from runner.worker.finish import Finisher
from runner.worker.logs import LogShipper, log_file, make_folders
from runner.worker.lookup import Lookup
from runner.worker.mask import Mask
from runner.worker.values import Values

log = structlog.get_logger(__name__)

# Killed from outside (out of memory, an operator) is nobody's failure, but a task that is killed every time must
# not go round for ever.
MAX_KILLS = 5
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # TERM: to a whole cgroup; the worker itself sends it at a timeout only


class Executor:
    """Claims attempts and runs them; called by as many threads as the node has slots."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        children: Children,
        attempts: Attempts,
        finisher: Finisher,
        shipper: LogShipper,
        values: Values,
        lookup: Lookup,
        drain: Drain,
        refused: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._children = children
        self._attempts = attempts
        self._finisher = finisher
        self._shipper = shipper
        self._values = values
        self._lookup = lookup
        self._drain = drain
        self._refused = refused
        self.logs = settings.home / "log" / "tasks"
        make_folders(self.logs)

    def execute(self, task_instance: int, attempt_number: int) -> None:
        """Answer one message, then go on with whatever is due until there is nothing left for this slot.

        A message with nothing to claim behind it is dropped in silence.
        """
        attempt = self._claim(task_instance, attempt_number)
        while attempt is not None:
            attempt = self._attempt(attempt)

    def _attempt(self, attempt: Attempt) -> Attempt | None:
        try:
            outcome = self._run(attempt)
        except BaseException:
            self._attempts.remove(attempt)  # a bug here: the heartbeat gives the lease back
            raise
        attempt.finishing = True
        if attempt.abandoned:
            log.warning("attempt abandoned", action="execute", why=attempt.abandoned, **_names(attempt.claim))
            self._attempts.remove(attempt)
            return None
        # Held until it is committed, so that its lease is renewed and the node is not idle before.
        following = self._finisher.finish(attempt, outcome)
        if outcome.result == "success":
            self._drain.proven()
        return following

    def _claim(self, task_instance: int, attempt_number: int) -> Attempt | None:
        lease = self._settings.lease_seconds
        node_id = self._settings.node_id
        try:
            with self._attempts.claiming() as before:  # never longer than the database's
                with self._engine.begin() as connection:
                    claim = transitions.claim(
                        connection, task_instance, attempt_number, node_id=node_id, lease_seconds=lease
                    )
                    if claim is None:
                        claim = self._anything(connection, task_instance, attempt_number)
                if claim is None:
                    return None
                attempt = Attempt(claim, before + lease)
                self._attempts.add(attempt)
                return attempt
        except DBAPIError as e:
            # The message is gone, the row is still queued: a scheduler sends it again. If the claim was committed
            # and only the answer lost, the heartbeat gives the lease back.
            log.warning("claim failed", action="claim", task_instance=task_instance, error=str(e.orig))
            return None

    def _anything(self, connection: Connection, task_instance: int, attempt_number: int) -> Claim | None:
        """The slot was woken and its message has nothing behind it: another slot was quicker. Take what is due."""
        if not nodes.is_ready(connection, self._settings.node_id):
            transitions.release(connection, task_instance, attempt_number)
            self._refused()  # stop consuming now, or this worker may get the same message until it is told
            return None
        log.debug("message refused", action="claim", task_instance=task_instance, attempt=attempt_number)
        claims = transitions.take(
            connection,
            node_id=self._settings.node_id,
            queues=self._drain.taking(),
            n=1,
            lease_seconds=self._settings.lease_seconds,
        )
        return claims[0] if claims else None

    def _run(self, attempt: Attempt) -> Outcome:
        claim = attempt.claim
        prefix = log_prefix(claim.dag_id, str(claim.run_id), claim.task_id, claim.attempt, claim.map_index)
        path = log_file(self.logs, claim.task_instance, claim.attempt)
        self._shipper.follow(path, prefix)
        try:
            return self._run_in_child(attempt, path, prefix)
        except TaskTimeout as e:
            return _failed(claim, str(e))
        except (BundleBroken, SluiceError) as e:
            return _failed(claim, f"bundle {claim.bundle_version} does not load on {self._settings.node_id}: {e}")
        except ChildDied as e:
            if e.signal in FROM_OUTSIDE:
                return _interrupted(claim, str(e))
            return _failed(claim, _limit_reached(claim, e))
        finally:
            attempt.child = None
            self._shipper.close(path)

    def _run_in_child(self, attempt: Attempt, log_path: Path, prefix: str) -> Outcome:
        claim = attempt.claim
        inputs, items = self._values.load(claim.inputs), self._values.load(claim.items)
        with self._children.lend(claim.bundle_version, claim.execution) as child:
            attempt.child = child
            if attempt.abandoned or attempt.ending:  # between the claim and here
                raise ChildDied(attempt.abandoned or "ended before its start", int(signal.SIGKILL))
            self._shipper.mask(log_path, child.mask)
            request = {
                "context": self._context(claim, prefix).to_json(),
                "inputs": inputs,
                "items": items,
                "execution": claim.execution,
                "log": str(log_path),
                "lease": attempt.lease_until - time.monotonic(),
            }
            answer = child.run(request, claim.timeout_seconds, self._answer_to(child.mask, log_path))
        if answer.get("error"):
            answer["error"] = child.mask.text(answer["error"])
        if answer["result"] == "terminated":
            return _interrupted(claim, "its process was told to end")
        return self._outcome(claim, answer)

    def _answer_to(self, mask: Mask, log_path: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """What a child's questions are answered with."""
        if mask:  # it has heard some for an earlier task
            self._shipper.holds_secrets(log_path)

        def answer(ask: dict[str, Any]) -> dict[str, Any]:
            found = self._lookup.answer(ask, mask)
            if mask:
                self._shipper.holds_secrets(log_path)
            return found

        return answer

    def _outcome(self, claim: Claim, answer: dict[str, Any]) -> Outcome:
        try:
            value, url = self._values.store(claim, answer.get("value"))
        except SluiceError as e:
            return Outcome(claim.task_instance, claim.token, "failed", error=e.message, retry=e.exit_code != 2)
        return Outcome(
            claim.task_instance,
            claim.token,
            answer["result"],
            value=value,
            url=url,
            length=answer.get("length"),
            error=answer.get("error"),
            retry=answer.get("retry", True),
            delay_seconds=answer.get("delay", 0.0),
            skip=tuple(answer.get("skip", ())),
        )

    def _context(self, claim: Claim, log_prefix: str) -> Context:
        settings = self._settings
        return Context(
            dag_id=claim.dag_id,
            run_id=str(claim.run_id),
            run_type=claim.run_type,
            task_id=claim.task_id,
            map_index=claim.map_index,
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
            waiting_since=claim.waiting_since,
            triggers=claim.triggers,
        )


def _failed(claim: Claim, error: str) -> Outcome:
    return Outcome(claim.task_instance, claim.token, "failed", error=error)


def _interrupted(claim: Claim, error: str) -> Outcome:
    result: Result = "interrupted" if claim.interruptions < MAX_KILLS else "failed"
    return Outcome(claim.task_instance, claim.token, result, error=error)


def _limit_reached(claim: Claim, died: ChildDied) -> str:
    if died.signal == signal.SIGXCPU:
        return f"used more than its limit of {claim.execution.get('cpu_seconds')} CPU seconds"
    return str(died)


def _names(claim: Claim) -> dict[str, Any]:
    return {"dag": claim.dag_id, "run": claim.run_id, "task": claim.task_id, "attempt": claim.attempt}
