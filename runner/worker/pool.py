"""Celery's thread pool, made to say when a slot is free.

The worker reserves no more messages than it has slots (`worker_disable_prefetch`), and its event loop looks for room
when something wakes it. The end of a task in a thread wakes nothing by itself, so a busy worker would take the next
message only at the next timer: here each end writes to an eventfd that the loop watches.
"""

from __future__ import annotations

import os
from typing import Any

from celery.concurrency.thread import ApplyResult, TaskPool

SLOT_FREE = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def forget() -> None:
    """Called by the event loop when it was woken: that it runs is all that was wanted."""
    try:
        os.eventfd_read(SLOT_FREE)
    except BlockingIOError:
        return


class SlotPool(TaskPool):  # type: ignore[misc]
    """Threads that wake the event loop at the end of each task."""

    def on_apply(self, *args: Any, **kwargs: Any) -> ApplyResult:
        result = super().on_apply(*args, **kwargs)
        # After Celery's own callback, so the slot is counted as free when the loop looks.
        result.f.add_done_callback(lambda _: os.eventfd_write(SLOT_FREE, 1))
        return result
