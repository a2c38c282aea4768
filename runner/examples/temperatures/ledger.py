"""An append-only record of what really ran, kept outside the database: what a judge holds the platform to.

Where `SLUICE_LEDGER` names a directory, a recorded task writes one JSON line when it starts and one when it ends
(`end`, or `fail` if it raised) to `ledger.jsonl`. While it runs it holds a lock of its own; a second execution of
the same task instance finds it taken and writes `overlap`. The kernel frees the lock however the process dies.
"""

import contextlib
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from runner.authoring import Context, get_current_context

F = TypeVar("F", bound=Callable[..., Any])


def recorded(function: F) -> F:
    """Record every execution of a task: `@task` above, `@recorded` below it."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        directory = os.environ.get("SLUICE_LEDGER")
        if not directory:
            return function(*args, **kwargs)
        with recording(Path(directory), get_current_context()):
            return function(*args, **kwargs)

    return cast(F, wrapper)


@contextlib.contextmanager
def recording(directory: Path, context: Context) -> Iterator[None]:
    """Write start and end around the block, and hold the task instance's lock in between."""
    locks = directory / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    fd = os.open(locks / f"{context.run_id}.{context.task_id}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _write(directory, "start", context)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _write(directory, "overlap", context)
        try:
            yield
        except BaseException:
            _write(directory, "fail", context)
            raise
        _write(directory, "end", context)
    finally:
        os.close(fd)


def _write(directory: Path, event: str, context: Context) -> None:
    line = {
        "event": event,
        "dag_id": context.dag_id,
        "run_id": str(context.run_id),
        "task_id": context.task_id,
        "attempt": context.attempt,
        "node": context.node,
        "pid": os.getpid(),
        "machine": _boot_id(),
        "t": time.monotonic_ns(),  # one clock for all processes of a machine
        "wall": time.time(),
    }
    fd = os.open(directory / "ledger.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, json.dumps(line).encode() + b"\n")  # one write: lines of many processes never mix
    finally:
        os.close(fd)


@functools.cache
def _boot_id() -> str:
    # The same for all processes, containers included, that share a kernel and so a monotonic clock.
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
