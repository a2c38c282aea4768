"""Four hundred tasks that do nothing but leave two short lines each in one ledger: for runs of many thousands.

A line: S (it starts), E (it has completed), F (it raised) or O (another execution of this very task instance is under
way), then run, task and attempt. A byte of one file, locked while the task runs, tells the last; the kernel frees it
however the process ends.
"""

import fcntl
import functools
import os
import zlib
from datetime import timedelta
from pathlib import Path

from runner.authoring import Context, dag, task


@functools.cache
def _open(name: str) -> int:
    """Once a process: children of the process that has imported this open their own."""
    return os.open(Path(os.environ["SLUICE_LEDGER"]) / name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)


@task(retries=3, retry_delay=timedelta(0))
def noop(before: list[None], context: Context) -> None:
    ledger, locks = _open("noops"), _open("locks")
    what = f" {context.run_id} {context.task_id} {context.attempt}\n".encode()
    byte = int(context.run_id) << 32 | zlib.crc32(context.task_id.encode())
    os.write(ledger, b"S" + what)
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except BlockingIOError:
        os.write(ledger, b"O" + what)
    try:
        os.write(ledger, b"E" + what)  # all that there is to do
    except BaseException:
        os.write(ledger, b"F" + what)
        raise
    finally:
        fcntl.lockf(locks, fcntl.LOCK_UN, 1, byte)


@dag
def noops() -> None:
    """Twenty fans of nineteen tasks and one that joins them."""
    for _ in range(20):
        noop([noop([]) for _ in range(19)])
