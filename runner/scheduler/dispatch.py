"""Duty: wake idle slots for what is ready, and ring again for what nobody seems to have heard."""

from __future__ import annotations

import time

from sqlalchemy import Engine

from runner.state import transitions
from runner.state.doorbell import Doorbell
from runner.state.transitions import Message

IDLE_SECONDS = 1.0  # a message this old while its queue has idle slots counts as lost
BUSY_SECONDS = 60.0  # else it waits: a slot that becomes free takes the task itself, so this is the net under the net


def dispatch(engine: Engine, doorbell: Doorbell) -> int:
    """Commit first, ring after: a crash in between leaves a queued row that `Resender` finds."""
    with engine.begin() as connection:
        messages = transitions.dispatch(connection)
    return doorbell.ring(messages)


class Resender:
    """Rings once more for queued tasks whose message seems lost: the same attempt, so twice does no harm.

    How long a message has been out is measured here, on the monotonic clock: no clock that is wrong delays it.
    """

    def __init__(self, engine: Engine, doorbell: Doorbell) -> None:
        self._engine = engine
        self._doorbell = doorbell
        self._rung: dict[Message, float] = {}

    def resend(self, now: float | None = None) -> int:
        """Ring for what is overdue; returns how many messages went out."""
        now = time.monotonic() if now is None else now
        with self._engine.begin() as connection:
            out = transitions.queued(connection)
        self._rung = {q.message: self._rung.get(q.message, now) for q in out}
        late = [q.message for q in out if now - self._rung[q.message] >= (IDLE_SECONDS if q.idle else BUSY_SECONDS)]
        self._rung.update(dict.fromkeys(late, now))
        return self._doorbell.ring(late)
