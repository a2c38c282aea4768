"""Duty: queue what is ready and free to run, and ring again for what nobody seems to have heard."""

from __future__ import annotations

from sqlalchemy import Engine

from runner.state import transitions
from runner.state.doorbell import Doorbell


def dispatch(engine: Engine, doorbell: Doorbell) -> int:
    """Commit first, ring after: a crash in between leaves a queued row that `resend` finds."""
    with engine.begin() as connection:
        messages = transitions.dispatch(connection)
    return doorbell.ring(messages)


def resend(engine: Engine, doorbell: Doorbell) -> int:
    """Ring once more for queued tasks whose message seems lost: the same attempt, so twice does no harm."""
    with engine.begin() as connection:
        messages = transitions.resend(connection)
    return doorbell.ring(messages)
