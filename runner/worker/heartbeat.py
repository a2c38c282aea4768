"""The node's pulse: one statement renews every lease and brings the orders."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from runner.settings import Settings
from runner.state import nodes, transitions
from runner.state.nodes import Orders
from runner.telemetry import systemd
from runner.worker.attempts import Attempts
from runner.worker.threads import essential

log = structlog.get_logger(__name__)


class Heartbeat:
    """A thread that beats every `heartbeat_seconds`, also while the node drains, until the worker has ended.

    A worker that cannot renew stops its own tasks before their lease can end: here if it can still act, and by the
    timer that each child has in the kernel if it cannot.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        attempts: Attempts,
        register: Callable[[], None],
        obey: Callable[[Orders], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._attempts = attempts
        self._register = register
        self._obey = obey
        self._stopping = False
        self._wake = threading.Event()
        self._strange: dict[uuid.UUID, float] = {}  # lease → when it was first seen
        self._thread = essential("heartbeat", self._loop)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def soon(self) -> None:
        """Beat now and not when it is due: there may be new orders."""
        self._wake.set()

    def _loop(self) -> None:
        while True:
            self._wake.wait(self._settings.heartbeat_seconds)
            if self._stopping:
                return
            self._wake.clear()
            try:
                self.beat()
            except DBAPIError as e:
                log.warning("heartbeat failed", action="heartbeat", error=str(e.orig))
            self._fence()
            systemd.notify("WATCHDOG=1")  # of the one thread that must not hang: a lease is at stake

    def beat(self) -> None:
        """Renew, then act on the answer."""
        held_here = {a.claim.token: a for a in self._attempts.all()}
        before = time.monotonic()
        lease = self._settings.lease_seconds
        with self._engine.begin() as connection:
            orders = nodes.heartbeat(connection, self._settings.node_id, list(held_here), lease_seconds=lease)
        if orders is None:
            self._register()
            return
        for token, attempt in held_here.items():
            if token in orders.renewed:
                attempt.lease_until = before + lease
                if attempt.child:
                    attempt.child.renew(attempt.lease_until - time.monotonic())
            if token in orders.ended and not attempt.finishing:
                attempt.end()
            elif token not in orders.held and not attempt.finishing and token in self._attempts:
                attempt.abandon("the lease was taken away")  # unless its outcome was committed meanwhile
        self._give_back(orders.held, before)
        self._obey(orders)

    def _give_back(self, held: frozenset[uuid.UUID], now: float) -> None:
        """Leases that the database has given and this worker never heard of: the answer to the claim was lost.

        Only if every claim that was under way when the lease was first seen is over by now.
        """
        self._strange = {t: self._strange.get(t, now) for t in held if t not in self._attempts}
        since = self._attempts.claiming_since()
        lost = [t for t, seen in self._strange.items() if seen < now and seen < since]
        if lost:
            with self._engine.begin() as connection:
                n = transitions.interrupt_tokens(connection, lost, "the answer to its claim was lost")
            log.warning("leases given back", action="heartbeat", tasks=n)

    def _fence(self) -> None:
        next_beat = time.monotonic() + self._settings.heartbeat_seconds
        for attempt in self._attempts.all():
            if attempt.lease_until < next_beat and not attempt.finishing:
                attempt.abandon("the lease could not be renewed")
