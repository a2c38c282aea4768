"""The worker's side of its child processes: start, lend out, renew, kill."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from runner.bundle import interpreter
from runner.worker.mask import Mask

log = structlog.get_logger(__name__)

START_SECONDS = 60.0  # a bundle's imports may take this long
KILL_SECONDS = 5.0  # between TERM and KILL of a task that exceeded its time
CLOSE_SECONDS = 2.0  # for a warm parent to end what runs under it
TASKS_PER_CHILD = 100  # a leak in pipeline code stays small
WITHHELD = {"SLUICE_SECRET_KEY"}  # a task that prints its environment must not print this
WARM_PARENTS = 8  # bundle versions kept warm at once


class ChildDied(Exception):
    """The child ended without an answer. `signal` is what killed it, 0 if it exited by itself."""

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


class TaskTimeout(Exception):
    """The task ran longer than its timeout and was stopped."""


class BundleBroken(Exception):
    """The bundle could not be imported on this node."""


def _pair() -> tuple[socket.socket, socket.socket]:
    """A socket pair that blocks.

    While Celery shuts down it sets a default timeout for every new socket of the process. A socket with a timeout is
    non-blocking for the kernel, for the process at the other end too: a child forked then would read "nothing there"
    as the end of its worker, and kill itself and its task.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(None)
    theirs.settimeout(None)
    return ours, theirs


class WarmParent:
    """A process that has imported one bundle version and forks children from there."""

    def __init__(self, bundle: Path, log_path: Path) -> None:
        self._control, theirs = _pair()
        with theirs, log_path.open("ab") as output:
            # Popen from a thread that lives as long as the worker: the kernel ties the process to that thread.
            self._process = subprocess.Popen(
                [interpreter(bundle), "-m", "runner.worker.child", str(bundle), str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={k: v for k, v in os.environ.items() if k not in WITHHELD},
                start_new_session=True,
            )
        self._reader = self._control.makefile("rb")
        self._lock = threading.Lock()
        self._ended: dict[int, int] = {}
        self._changed = threading.Condition()
        self.alive = True
        hello = self._hello()
        if "warm" not in hello:
            self.close()
            if not hello and self._process.returncode < 0:  # killed from outside: that says nothing of the bundle
                number = -self._process.returncode
                name = signal.Signals(number).name
                raise ChildDied(f"the process that imports the bundle was killed by {name}", number)
            raise BundleBroken(hello.get("broken", "the process that imports the bundle ended at once"))
        threading.Thread(target=self._listen, name="warm-parent", daemon=True).start()

    def _hello(self) -> dict[str, Any]:
        readable, _, _ = select.select([self._control], [], [], START_SECONDS)
        line = self._reader.readline() if readable else b""
        if not readable:
            return {"broken": f"importing the bundle took longer than {START_SECONDS:g} s"}
        return dict(json.loads(line)) if line else {}

    def _listen(self) -> None:
        for line in self._reader:
            message = json.loads(line)
            with self._changed:
                self._ended[message["ended"]] = message["status"]
                self._changed.notify_all()
        with self._changed:
            self.alive = False
            self._changed.notify_all()

    def fork(self) -> Child:
        """A new child, waiting for its first task."""
        mine, theirs = _pair()
        with theirs, self._lock:
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        return Child(mine, self)

    def exit_status(self, pid: int, wait_seconds: float = 2.0) -> int | None:
        """How this child ended: its exit code, or minus the signal that killed it; None if that is not known."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._ended or not self.alive, wait_seconds)
            return self._ended.pop(pid, None)

    def close(self) -> None:
        """End the process; it ends its children before, and what they have started."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:  # it hangs in an import, and has no children yet
            self._process.kill()
            self._process.wait()
        self._control.close()


class Child:
    """One child process."""

    def __init__(self, connection: socket.socket, parent: WarmParent) -> None:
        self._connection = connection
        self._parent = parent
        self._received = bytearray()
        self.mask = Mask()  # what its tasks were told, it may say later too
        self._lock = threading.Lock()
        self.tasks = 0
        self.busy = False
        self.reusable = True
        self.rss_mb = 0.0
        hello = self._line(None)
        if not hello:
            # None of the task's code has run in it.
            raise ChildDied("the child was killed before its first task", int(signal.SIGKILL))
        self.pid: int = json.loads(hello)["pid"]

    def run(
        self,
        request: dict[str, Any],
        timeout_seconds: float | None,
        ask: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Run one task and return its answer; `ask` answers what it asks for meanwhile.

        Raises ChildDied or TaskTimeout; the child is gone then.
        """
        self.tasks += 1
        self.busy = True
        try:
            return self._run(request, timeout_seconds, ask)
        finally:
            self.busy = False

    def _run(
        self,
        request: dict[str, Any],
        timeout_seconds: float | None,
        ask: Callable[[dict[str, Any]], dict[str, Any]] | None,
    ) -> dict[str, Any]:
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        answer: dict[str, Any] = {}
        try:
            self._send({"run": request})
            while "result" not in answer:
                line = self._line(end)
                if line is None:
                    raise self._timeout(timeout_seconds or 0.0)
                if not line:
                    raise self._died()
                answer = json.loads(line)
                if "ask" in answer:
                    self._send({"answer": ask(answer["ask"]) if ask else {"id": answer["ask"]["id"], "found": None}})
        except OSError:
            raise self._died() from None
        self.reusable = self.reusable and answer["result"] == "success"  # a failed task may leave anything behind
        self.rss_mb = float(answer.get("rss_mb", 0.0))
        return answer

    def renew(self, seconds: float) -> None:
        """Let the kernel end the child this much later."""
        with contextlib.suppress(OSError):  # it just ended
            self._send({"lease": seconds})

    def stop(self) -> None:
        """Ask the task to stop, so that it can tidy up; KILL_SECONDS later it is killed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        tasks = self.tasks

        def kill() -> None:
            if self.busy and self.tasks == tasks:
                self.kill()

        timer = threading.Timer(KILL_SECONDS, kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """SIGKILL to the child and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the socket; a child that still lives ends with it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _line(self, end: float | None) -> bytes | None:
        """The next line; empty if there will be none, None if it is not there by `end` (monotonic)."""
        seen = 0
        while (at := self._received.find(b"\n", seen)) < 0:
            seen = len(self._received)
            if end is not None and not self._readable(max(0.0, end - time.monotonic())):
                return None
            data = self._connection.recv(1 << 20)
            if not data:
                return b""
            self._received += data
        line = bytes(self._received[: at + 1])
        del self._received[: at + 1]
        return line

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _readable(self, seconds: float) -> bool:
        return bool(select.select([self._connection], [], [], seconds)[0])

    def _timeout(self, seconds: float) -> TaskTimeout:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        self._readable(KILL_SECONDS)
        self.kill()
        return TaskTimeout(f"ran longer than its timeout of {seconds:g} s")

    def _died(self) -> ChildDied:
        status = self._parent.exit_status(self.pid)
        if status is None or status < 0:
            number = -status if status else int(signal.SIGKILL)
            return ChildDied(f"its process was killed by {signal.Signals(number).name}", number)
        return ChildDied(f"its process exited with status {status} in the middle of the task")


@dataclass
class _Version:
    parent: WarmParent
    idle: list[Child] = field(default_factory=list)
    lent: int = 0
    used: float = 0.0


class Children:
    """Warm parents by bundle version, and their idle children."""

    def __init__(self, fetch: Callable[[str], Path], log_path: Path, *, recycle_mb: float = 512) -> None:
        self._fetch = fetch
        self._log_path = log_path
        self._recycle_mb = recycle_mb
        self._versions: dict[str, _Version] = {}
        self._lock = threading.Lock()
        self._starting: dict[str, threading.Lock] = {}

    @contextlib.contextmanager
    def lend(self, version: str, execution: Mapping[str, Any] | None = None) -> Iterator[Child]:
        """A child of this bundle version, a warm one if there is one. Raises BundleBroken.

        Left without an exception it is kept for the next task, else it is killed. One whose task asks for a process
        of its own, or has limits (see authoring.spec.TaskSpec.execution), is new and is not kept.
        """
        entry = self._version(version)
        alone = bool(execution) and (execution or {}).get("isolation", "reuse") != "reuse"
        try:
            child = None if alone else self._idle(entry)
            child = child or entry.parent.fork()
            child.reusable = not alone
            try:
                yield child
            except BaseException:
                child.kill()
                child.close()
                raise
            self._take_back(entry, child)
        finally:
            with self._lock:
                entry.lent -= 1

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            entries, self._versions = list(self._versions.values()), {}
        for entry in entries:
            for child in entry.idle:
                child.close()
            entry.parent.close()

    def _idle(self, entry: _Version) -> Child | None:
        with self._lock:
            return entry.idle.pop() if entry.idle else None

    def _take_back(self, entry: _Version, child: Child) -> None:
        if child.reusable and child.tasks < TASKS_PER_CHILD and child.rss_mb < self._recycle_mb:
            with self._lock:
                entry.idle.append(child)
        else:
            child.kill()
            child.close()

    def _version(self, version: str) -> _Version:
        """The live entry of this version, counted as lent once more."""
        with self._lock:
            starting = self._starting.setdefault(version, threading.Lock())
        with starting:  # one import, however many slots want the version
            with self._lock:
                entry = self._versions.get(version)
            if entry is None or not entry.parent.alive:
                entry = _Version(WarmParent(self._fetch(version), self._log_path))
            with self._lock:
                self._versions[version] = entry
                entry.lent += 1
                entry.used = time.monotonic()
        self._evict()
        return entry

    def _evict(self) -> None:
        """End the warm parents that were not used for longest, unless a child of theirs is at work."""
        with self._lock:
            by_age = sorted(self._versions, key=lambda v: self._versions[v].used)
            spare = [v for v in by_age[:-WARM_PARENTS] if self._versions[v].lent == 0]
            entries = [self._versions.pop(v) for v in spare]
        for entry in entries:
            entry.parent.close()
