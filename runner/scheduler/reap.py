"""Duty: hand on the tasks of workers that are not heard any more."""

from __future__ import annotations

import time

import structlog
from sqlalchemy import Connection

from runner.state import transitions
from runner.state.transitions import Lease

log = structlog.get_logger(__name__)

MARGIN_SECONDS = 5.0  # for the kernel to end the children of a worker whose lease is over


class Reaper:
    """Believes that a lease is over only when it has itself seen it unchanged for the whole length of a lease.

    Seen on this scheduler's monotonic clock: no clock on any machine can be wrong enough to take a task away from a
    worker that renews. `forget` is called when the database was away, so that workers get a full lease to renew.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._patience = lease_seconds + MARGIN_SECONDS
        self._first_seen: dict[Lease, float] = {}

    def forget(self) -> None:
        """Start watching anew."""
        self._first_seen.clear()

    def reap(self, connection: Connection, now: float | None = None) -> int:
        """Interrupt the tasks whose lease is over; returns how many."""
        now = time.monotonic() if now is None else now
        current = transitions.leases(connection)
        self._first_seen = {lease: self._first_seen.get(lease, now) for lease in current}
        expired = [lease for lease, seen in self._first_seen.items() if now - seen >= self._patience]
        interrupted = transitions.interrupt_leases(connection, expired)
        if interrupted:
            log.warning("leases expired; their tasks are handed on", action="reap", tasks=interrupted)
        return interrupted
