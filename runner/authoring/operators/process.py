"""Commands in a process group of their own, which is gone when the task is, whatever the task died of."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TERM_SECONDS = 3.0  # between TERM and KILL; a worker gives a task five seconds to stop

# First in the group, and last. Its input ends when this process does, also by SIGKILL, when nothing of ours can run
# any more: then it ends the group, so that no command outlives the attempt that started it.
_GUARD = "trap '' TERM INT HUP QUIT; read _; kill -KILL 0"


@contextlib.contextmanager
def process_group(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    stdout: Any = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command at the head of a new process group; at the end of the block nothing of the group is left.

    A block that ends with an error gives it TERM and a moment first. Raises OSError if it cannot be started.
    """
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        process_group=0,
    )
    process = None
    try:
        process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=stdout, process_group=guard.pid
        )
        yield process
    except BaseException:
        if process is not None and process.poll() is None:
            os.killpg(guard.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TERM_SECONDS)
        raise
    finally:
        os.killpg(guard.pid, signal.SIGKILL)  # the guard is not waited for yet: the number is still its own
        for ended in (guard, process):
            if ended is not None:
                ended.wait()
                for stream in (ended.stdin, ended.stdout):
                    if stream is not None:
                        stream.close()
