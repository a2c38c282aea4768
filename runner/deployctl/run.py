"""One terraform process: its own group, one SIGINT at most, its output in a file that outlives us.

Every run is a process group of its own, so that Ctrl-C on the terminal does not reach it: a cancelled run gets
exactly one SIGINT from us and is waited for, because a second one makes terraform drop the state lock on the floor
(hashicorp/terraform#31371). Its output goes to a file that is followed, not to a pipe: a run outlives the death of
its `deployctl`, finishes its change and gives the lock back. The file is locked for as long as its terraform lives,
so anybody can tell the log of a run that goes on from that of one that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from runner.deployctl.messages import Diagnostic, Message, parse

OnMessage = Callable[[Message], None]

_FOLLOW_SECONDS = 0.05


class CancelledError(Exception):
    """The run was asked to stop and did; its lock is given back."""


class Cancel:
    """One wish to stop, shared by runs that go on side by side. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may come in while its own thread holds it
        self._running: set[subprocess.Popen[bytes]] = set()
        self._wanted = False
        self._asking = False

    @property
    def wanted(self) -> bool:
        return self._wanted

    def cancel(self) -> None:
        """Send each running terraform one SIGINT, once, however often this is called; later runs do not start."""
        with self._lock:
            if self._wanted:
                return
            self._wanted = True
            for process in list(self._running):
                _interrupt(process)

    @contextlib.contextmanager
    def watch(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Make a process one of those that `cancel` stops."""
        with self._lock:
            self._running.add(process)
            if self._wanted:
                _interrupt(process)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """While a question is on the terminal no terraform runs: there Ctrl-C is an answer, and raises."""
        self._asking = True
        try:
            yield
        finally:
            self._asking = False

    @contextlib.contextmanager
    def on_signals(self, said: Callable[[bool], None]) -> Iterator[None]:
        """Let Ctrl-C, TERM and HUP cancel instead of raising; `said(first)` tells the user.

        Does nothing outside the main thread, where Python has no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(_number: int, _frame: FrameType | None) -> None:
            if self._asking:
                raise KeyboardInterrupt
            first = not self._wanted
            self.cancel()
            said(first)

        before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Run:
    """What a run said, and how it ended."""

    log: Path
    code: int = -1
    errors: list[Diagnostic] = field(default_factory=list)
    warnings: list[Diagnostic] = field(default_factory=list)
    planned: list[Mapping[str, Any]] = field(default_factory=list)
    text: str = ""  # what was not a UI message: the answer of `show` and `output`, or a crash
    stderr: str = ""

    def take(self, line: str, on_message: OnMessage | None) -> None:
        """Take one line of its output in."""
        message = parse(line)
        if message is None:
            self.text += line
            return
        if message.diagnostic:
            (self.errors if message.diagnostic.severity == "error" else self.warnings).append(message.diagnostic)
        elif message.kind in ("planned_change", "outputs"):
            self.planned.append(message.raw)
        if on_message:
            on_message(message)


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    environ: Mapping[str, str],
    log_folder: Path,
    name: str,
    cancel: Cancel,
    on_message: OnMessage | None = None,
) -> Run:
    """Run a command to its end, or, if asked to, interrupt it and wait for it; the caller judges the exit code.

    Its log is `<name>-<random>.log`: another deployctl may be at work in this folder.
    Raises CancelledError if it was not to be started any more.
    """
    if cancel.wanted:
        raise CancelledError
    # mkstemp makes it private: outputs and plans hold secrets.
    handle, log = tempfile.mkstemp(dir=log_folder, prefix=f"{name}-", suffix=".log")
    run = Run(Path(log))
    with os.fdopen(handle, "wb") as out, tempfile.TemporaryFile() as err:
        fcntl.flock(out, fcntl.LOCK_EX)  # the child's stdout is this open file: the lock lives as long as it does
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        with cancel.watch(process):
            try:
                for line in _follow(run.log, process):
                    run.take(line, on_message)
            except BaseException:
                _interrupt(process)
                process.wait()
                raise
        run.code = process.wait()
        err.seek(0)
        run.stderr = err.read().decode(errors="replace")
    return run


def abandoned(log: Path) -> bool:
    """Whether the terraform that wrote a log is gone. False if the log is."""
    try:
        with log.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return False
    return True


def _follow(path: Path, process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Whole lines of a growing file until the process that writes it has ended."""
    rest = b""
    with path.open("rb") as handle:
        while True:
            ended = process.poll() is not None  # before reading: what is there now is then all there will be
            block = handle.read()
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace") + "\n"
            if ended:
                if rest:
                    yield rest.decode(errors="replace")
                return
            if not block:
                time.sleep(_FOLLOW_SECONDS)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    # The whole group, as a terminal would: PATH may hold a wrapper, and provider plugins ignore the signal.
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
