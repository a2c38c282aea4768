"""A command line as a task."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

from runner.authoring.context import Context
from runner.authoring.errors import Skip
from runner.authoring.operators.base import Operator
from runner.authoring.operators.output import Output
from runner.authoring.operators.process import process_group
from runner.authoring.operators.stopping import stoppable


class CommandError(RuntimeError):
    """A command ended with a status that means failure."""


class BashOperator(Operator):
    """Runs `bash -e -o pipefail -c command`; its output goes to the task's log as it comes.

    Any exit status but 0 is a failure, `skip_exit_code` skips the task. The command sees the task's environment, its
    context (`SLUICE_DAG_ID`, `SLUICE_LOGICAL_DATE`, …; see `Context.environment`) and `env`, in the directory `cwd`.
    It runs in a process group of its own: whatever it leaves behind ends with it. `return_last_line` makes the last
    line of its stdout the task's value. Raises CommandError.
    """

    template_fields = ("command", "env", "cwd")

    def __init__(
        self,
        task_id: str,
        *,
        command: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        skip_exit_code: int | None = 99,
        return_last_line: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(task_id, **options)
        self.command = command
        self.env = dict(env or {})
        self.cwd = cwd
        self.skip_exit_code = skip_exit_code
        self.return_last_line = return_last_line

    def execute(self, context: Context) -> str | None:
        """Run the command to its end."""
        bash = shutil.which("bash")
        if bash is None:
            raise CommandError("there is no bash on this node")
        argv = [bash, "-e", "-o", "pipefail", "-c", self.command]
        env = {**os.environ, **context.environment(), **{k: str(v) for k, v in self.env.items()}}
        sys.stdout.flush()
        pipe = subprocess.PIPE if self.return_last_line else None
        with stoppable(), process_group(argv, env=env, cwd=self.cwd, stdout=pipe) as process:
            reader = _Reader(process.stdout) if process.stdout else None
            status = process.wait()
        if reader is not None:
            reader.join(5.0)  # the group is gone, so the pipe is at its end, unless somebody left the group
        if status == self.skip_exit_code:
            raise Skip(f"the command exited with status {status}")
        if status != 0:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            raise CommandError(f"the command {how}: {_first_line(self.command)}")
        return reader.output.last_line() if reader is not None else None


class _Reader(threading.Thread):
    """Reads the command's stdout while the command is waited for."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._fd = os.dup(stream.fileno())  # its own, so that nobody closes it under a read
        self.output = Output()
        self.start()

    def run(self) -> None:
        while data := os.read(self._fd, 65536):
            self.output.add(data)
        os.close(self._fd)


def _first_line(command: str) -> str:
    lines = command.strip().splitlines() or [""]
    return lines[0] + (" …" if len(lines) > 1 else "")
