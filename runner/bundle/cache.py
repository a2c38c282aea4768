"""Directories in a node's cache: shared by processes, removed when nobody uses them any more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

_in_use: dict[str, int] = {}  # directory → descriptor of its lock


def lock_of(directory: Path) -> Path:
    """The lock file of a directory in the cache: shared by its users, exclusive to make or remove it."""
    return directory.with_name(f"{directory.name}.lock")


def hold(directory: Path) -> None:
    """Mark a directory as in use until this process and its forked children have ended."""
    lock = lock_of(directory)
    if str(directory) in _in_use or not lock.exists():
        return
    fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH)
    _in_use[str(directory)] = fd  # never closed: forked children share it


def used(directory: Path) -> None:
    """Note that a directory was used now: the last to be pruned."""
    lock_of(directory).touch()
    os.utime(directory)


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Nobody else makes or removes this directory meanwhile. Waits."""
    lock = lock_of(directory)
    while True:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(fd).st_ino == lock.stat().st_ino:
                break
        os.close(fd)  # who had it before has removed it: what is locked now is no one's any more
    try:
        yield
    finally:
        os.close(fd)


def prune(newest: Path, keep: int) -> None:
    """Of the directories beside `newest` keep the `keep` - 1 used last, and every one that is in use."""
    others = [p for p in newest.parent.iterdir() if p.is_dir() and not p.name.startswith(".") and p != newest]
    others.sort(key=_last_used, reverse=True)
    for old in others[max(keep - 1, 0) :]:
        remove_unused(old)


def remove_unused(directory: Path) -> bool:
    """Remove a directory unless a process has it loaded, or makes it; False if one has."""
    lock = lock_of(directory)
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        # Renamed first: nobody can find a directory that is half removed.
        trash = directory.with_name(f".trash-{directory.name}-{os.getpid()}-{time.monotonic_ns()}")
        with contextlib.suppress(FileNotFoundError):
            directory.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
        lock.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
