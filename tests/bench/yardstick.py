"""The yardstick: the same number of no-op tasks through Celery alone, on the same broker and as many slots.

Celery's own defaults, without results: one worker process with a prefork pool. Run with
`celery -A tests.bench.yardstick worker`, it reads BENCH_BROKER_URL and BENCH_COUNTER.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("yardstick", broker=os.environ.get("BENCH_BROKER_URL", ""), set_as_current=False)
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)

_counter = -1


@app.task(name="noop")
def noop() -> None:
    """Nothing but a byte that says that it ran: counting must not cost what a result would."""
    global _counter
    if _counter < 0:
        _counter = os.open(os.environ["BENCH_COUNTER"], os.O_WRONLY | os.O_APPEND)
    os.write(_counter, b".")


class Yardstick:
    """Sends the tasks and waits until all have run."""

    def __init__(self, broker_url: str, counter: Path) -> None:
        app.conf.broker_url = broker_url
        self._counter = counter
        counter.touch()

    def fan(self, width: int, timeout_seconds: float = 120.0) -> float:
        """Seconds from the first task sent to the last task done. Raises TimeoutError."""
        wanted = self._counter.stat().st_size + width
        start = time.perf_counter()
        with app.producer_pool.acquire(block=True) as producer:
            for _ in range(width):
                noop.apply_async(producer=producer)
        while self._counter.stat().st_size < wanted:
            if time.perf_counter() - start > timeout_seconds:
                raise TimeoutError(f"bare Celery did not run {width} tasks in {timeout_seconds:g} s")
            time.sleep(0.002)
        return time.perf_counter() - start
