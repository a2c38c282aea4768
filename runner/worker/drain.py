"""What work is taken: none by a node that drains, only its own by one that is to prove itself; and when none is left.

Consumers are cancelled inside Celery's own event loop, by a boot step that looks a few times a second at what the
heartbeat was told. The gate itself is in the database: a message that still arrives finds nothing to claim.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import structlog
from celery import bootsteps
from celery.worker import state as celery_state
from sqlalchemy.exc import DBAPIError

from runner.state.nodes import Orders
from runner.worker.pool import SLOT_FREE, forget
from runner.worker.threads import essential

log = structlog.get_logger(__name__)

LOOK_SECONDS = 0.2
IDLE_LOOKS = 2  # a drained node was seen idle this many times in a row
IDLE_LOOK_SECONDS = 0.3  # between two of these looks
PROOF_SECONDS = 15.0  # for which a node that a roll has brought waits to be tried


class Drain:
    """What this worker shall consume, and what it does. Written by the heartbeat, read by the boot step.

    own: the one of its queues that is nobody else's.
    """

    def __init__(self, queues: list[str], own: str = "") -> None:
        self.queues = queues
        self.own = own
        self._proof_until = 0.0
        self._consumed: Collection[str] = ()
        self.consuming = threading.Event()
        self.draining = threading.Event()  # the orders are to drain, and it is not yet said that it is done
        self._wanted = True

    def obey(self, orders: Orders) -> None:
        """Consume while the node is ready, and only then."""
        wanted = orders.state == "ready"
        if wanted != self._wanted:
            log.info("orders changed", action="drain", node_state=orders.state, reason=orders.reason)
            self._wanted = wanted
            os.eventfd_write(SLOT_FREE, 1)  # the event loop acts on it now, not at its next look
        if orders.state == "draining":
            self.draining.set()
        else:
            self.draining.clear()

    def pause(self) -> None:
        """Stop consuming until the next heartbeat brings orders: a claim was refused because the node is not ready."""
        self._wanted = False
        os.eventfd_write(SLOT_FREE, 1)

    def prove(self) -> None:
        """Take only what is meant for this very node until something has succeeded on it.

        Long tasks would else fill its slots before the roll that has brought it could try it. A roll that does not
        come to it for PROOF_SECONDS must not keep it from serving.
        """
        self._proof_until = time.monotonic() + PROOF_SECONDS

    def proven(self) -> None:
        """Something has succeeded on this node: it takes what all take."""
        if self._proof_until:
            self._proof_until = 0.0
            os.eventfd_write(SLOT_FREE, 1)

    def taking(self) -> list[str]:
        """The queues from which a node that is ready takes its tasks at this moment."""
        return [self.own] if time.monotonic() < self._proof_until else self.queues

    def connected(self) -> None:
        """Celery has (again) begun to consume, from every queue."""
        self._consumed = self.queues
        self.consuming.set()

    def look(self, consumer: Any) -> None:
        """Bring Celery's consumers in line with the orders. Runs in the consumer's event loop."""
        wanted = self.taking() if self._wanted else []
        for queue in self.queues:
            if queue in wanted and queue not in self._consumed:
                consumer.add_task_queue(queue)
            elif queue in self._consumed and queue not in wanted:
                consumer.cancel_task_queue(queue)
        self._consumed = wanted
        if wanted:
            self.consuming.set()
        else:
            self.consuming.clear()

    @staticmethod
    def reserved() -> int:
        """Messages that Celery holds and has not finished."""
        return len(celery_state.reserved_requests)


class IdleWatch:
    """Says once that a draining worker is idle: several looks in a row, a moment apart, found nothing to wait for.

    `busy` is whether an attempt is under way; `done` puts into the database that the node is drained, and is False
    while that may not be said yet. It may take its time: this is not the thread that renews the leases.
    """

    def __init__(self, drain: Drain, busy: Callable[[], bool], done: Callable[[], bool]) -> None:
        self._drain = drain
        self._busy = busy
        self._done = done
        self._looks = 0
        self._stop = threading.Event()
        self._thread = essential("idle-watch", self._loop)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(IDLE_LOOK_SECONDS):
            try:
                self.look()
            except DBAPIError as e:
                log.warning("cannot say that the node is drained", action="drain", error=str(e.orig))

    def look(self) -> None:
        """Look once; the look that completes the row says so."""
        drain = self._drain
        idle = drain.draining.is_set() and not (drain.consuming.is_set() or drain.reserved() or self._busy())
        self._looks = self._looks + 1 if idle else 0
        if self._looks >= IDLE_LOOKS:
            self._looks = 0
            if self._done():
                drain.draining.clear()


def boot_step(drain: Drain) -> type[bootsteps.StartStopStep]:
    """The step that ties a `Drain` to a Celery consumer, again after each reconnect."""

    def woken(consumer: Any) -> None:
        forget()
        drain.look(consumer)

    class DrainStep(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: Any) -> None:
            drain.connected()
            drain.look(consumer)
            consumer.hub.add_reader(SLOT_FREE, woken, consumer)
            self._timer = consumer.timer.call_repeatedly(LOOK_SECONDS, drain.look, args=(consumer,))

        def stop(self, consumer: Any) -> None:
            drain.consuming.clear()
            timer = getattr(self, "_timer", None)
            if timer is not None:
                timer.cancel()

    return DrainStep
