"""Daemons that outlive their starter, found again by pid file, never mistaken for another process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from runner.settings import SluiceError
from runner.telemetry.alive import birth

_POLL_SECONDS = 0.02
_children: set[int] = set()  # started by this process and not yet reaped
_exit_codes: dict[int, int] = {}


@dataclass(frozen=True)
class Ref:
    """One process for all time: its pid, and when it started, so that a recycled pid is another process."""

    pid: int
    started: str

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        _reap(self.pid)
        return birth(self.pid) == self.started

    def signal(self, number: int) -> bool:
        """Send a signal to this very process; False if it is gone. Raises SluiceError if it is not ours."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise SluiceError(
                f"process {self.pid} belongs to another user and cannot be signalled",
                "run the command as the user who started it",
            ) from None
        return True


def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    pidfile: Path,
    *,
    cwd: Path | None = None,
    user: tuple[int, int] | None = None,
) -> Ref:
    """Start a daemon in a session of its own, or return the one that runs already under this pid file.

    env is the whole environment. stdout and stderr are appended to log. user is a (uid, gid) to run as.
    Raises SluiceError if the program cannot be started.
    """
    pidfile.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _locked(pidfile):
        running = read(pidfile)
        if running is not None:
            return running
        try:
            with log.open("ab") as out:
                child = subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    user=user[0] if user else None,
                    group=user[1] if user else None,
                    extra_groups=[] if user else None,
                )
        except OSError as e:
            raise SluiceError(f"cannot start {argv[0]}: {e.strerror or e}") from None
        ref = Ref(child.pid, birth(child.pid) or "exited at once")
        # The daemon is meant to outlive this object: without this, letting go of it is reported as a leak.
        # It is reaped by alive().
        child.returncode = 0
        _children.add(child.pid)
        write_atomically(pidfile, json.dumps({"pid": ref.pid, "started": ref.started}))
        return ref


def read(pidfile: Path) -> Ref | None:
    """The live process of this pid file, or None."""
    ref = recorded(pidfile)
    return ref if ref is not None and ref.alive() else None


def recorded(pidfile: Path) -> Ref | None:
    """What the pid file says, whether it still runs or not; None without a readable file."""
    try:
        data = json.loads(pidfile.read_text())
        return Ref(int(data["pid"]), str(data["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def alive(pidfile: Path) -> bool:
    """Whether the process of this pid file runs."""
    return read(pidfile) is not None


def stop(
    pidfile: Path, grace: float = 10.0, first: signal.Signals = signal.SIGTERM, *, descendants: bool = True
) -> Literal["", "stopped", "killed"]:
    """Ask the process to end, wait up to grace seconds, then KILL what is left of it and its descendants.

    With descendants=False what it started goes on. Returns "" if nothing ran, "stopped" if it ended by itself in
    time, "killed" if it had to be killed. The pid file is removed.
    """
    ref = read(pidfile)
    if ref is None:
        pidfile.unlink(missing_ok=True)
        return ""
    # Taken now: once the parent is gone its children can no longer be found through it.
    family = tree(ref.pid) if descendants else {ref}
    ref.signal(first)
    ended = wait_gone(ref, grace)
    if descendants and not ended:
        family |= tree(ref.pid)
    for member in family:
        member.signal(signal.SIGKILL)
    for member in family:
        wait_gone(member, 5.0)
    pidfile.unlink(missing_ok=True)
    return "stopped" if ended else "killed"


def kill_tree(pid: int | None, marker: str = "") -> int:
    """KILL a process, its descendants and its session, at once and without asking; returns how many.

    marker is a NAME=value that its starter put into its environment: whatever still carries it is killed too,
    so a grandchild that lost its parent and made a session of its own does not survive its machine. With a
    marker the pid may be None: the process itself is gone already.
    """
    killed: set[Ref] = set()
    for _ in range(5):  # what was forked between looking and killing is found in the next round
        found = (tree(pid) if pid is not None else set()) | (_marked(marker) if marker else set())
        found = {ref for ref in found if ref.pid != os.getpid()}
        if not found:
            break
        for ref in found:
            ref.signal(signal.SIGKILL)
        killed |= found
        for ref in found:
            wait_gone(ref, 2.0)
        pid = None if pid is not None and birth(pid) is None else pid
    return len(killed)


def tree(pid: int) -> set[Ref]:
    """The process, its descendants, and the members of the session it leads."""
    pids: set[int] = set()
    with contextlib.suppress(psutil.Error):
        pids = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    if pid != os.getsid(0):
        for other in psutil.pids():
            # A session keeps its leader's pid taken for as long as it has a member: this is never a stranger.
            with contextlib.suppress(OSError):
                if os.getsid(other) == pid:
                    pids.add(other)
    return {Ref(p, b) for p in pids if (b := birth(p)) is not None}


def wait_gone(ref: Ref, seconds: float) -> bool:
    """Wait until the process has ended; False if it still runs after that time."""
    deadline = time.monotonic() + seconds
    while ref.alive():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def write_atomically(path: Path, text: str, mode: int = 0o666) -> None:
    """Write a file so that a reader sees the old content or the new, never a part. mode is less the umask."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(part, "w", opener=lambda name, flags: os.open(name, flags, mode)) as out:
        out.write(text)
    part.replace(path)


def _marked(marker: str) -> set[Ref]:
    found = set()
    name, _, value = marker.partition("=")
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if other.environ().get(name) == value and (b := birth(other.pid)):
                found.add(Ref(other.pid, b))
    return found


def exit_code(ref: Ref) -> int | None:
    """How a daemon started by this very process ended (negative: by that signal); None if that is not known."""
    _reap(ref.pid)
    return _exit_codes.get(ref.pid)


def _reap(pid: int) -> None:
    """Take the exit status of a child of ours that has ended, so that it does not stay as a zombie."""
    if pid not in _children:
        return
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        _children.discard(pid)
        return
    if done:
        _exit_codes[pid] = os.waitstatus_to_exitcode(status)
        _children.discard(pid)


@contextlib.contextmanager
def _locked(pidfile: Path) -> Iterator[None]:
    """Two starters of one daemon: the second waits and finds it running."""
    with pidfile.with_suffix(".lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
