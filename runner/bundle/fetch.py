"""A version's files in this node's cache: fetched on first use, the last few kept."""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from runner.bundle.archive import unpack
from runner.bundle.build import version_of
from runner.bundle.load import lock_of
from runner.settings import SluiceError, UsageError

BUILTIN = "builtin"  # the version that ships with the release itself and needs no storage


class Store(Protocol):
    """What bundles need of `runner.storage.Storage`."""

    @property
    def url(self) -> str: ...
    def url_of(self, key: str) -> str: ...
    def put(self, key: str, data: bytes) -> None: ...
    def get(self, key: str) -> bytes: ...
    def exists(self, key: str) -> bool: ...


def key_of(version: str) -> str:
    """Where a version is kept in artifacts."""
    return f"bundles/{version}.tar.gz"


def fetch(version: str, *, storage: Store | None, cache: Path, keep: int = 5) -> Path:
    """The directory of a bundle version, from the cache or from `storage`.

    It appears whole or not at all, and only if its content has this version. Of the others the `keep` - 1 used last
    stay, and every one that is loaded somewhere (see `load`). `builtin` is a folder of this package and needs no
    storage. Raises SluiceError for a version that is not there or not what it says.
    """
    if version == BUILTIN:
        return Path(__file__).parent / "builtin"
    if not re.fullmatch(r"[0-9a-f]{16}", version):
        raise UsageError(f"bundle version {version!r} is not 16 hex digits")
    target = cache.resolve() / version
    if not target.is_dir():
        if storage is None:
            raise SluiceError(f"bundle {version} is not in the cache {cache} and no storage is known")
        cache.mkdir(parents=True, exist_ok=True)
        _unpack(version, storage.get(key_of(version)), storage.url_of(key_of(version)), target)
    lock_of(target).touch()
    os.utime(target)  # last used now
    _prune(target, keep)
    return target


def _unpack(version: str, data: bytes, url: str, target: Path) -> None:
    try:
        content = gzip.decompress(data)
    except (OSError, EOFError) as e:
        raise SluiceError(f"bundle {url} is damaged: {e}") from None
    if version_of(content) != version:
        raise SluiceError(
            f"bundle {url} holds version {version_of(content)}", "it was changed after publishing; push it again"
        )
    with unpacked(content, beside=target) as directory:
        try:
            directory.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first: the same content
                raise


@contextmanager
def unpacked(tar: bytes, beside: Path | None = None) -> Iterator[Path]:
    """A tar's files in a temporary directory (a neighbour of `beside`), removed at the end unless renamed."""
    parent = tempfile.mkdtemp(prefix=".unpack-", dir=beside.parent if beside else None)
    try:
        directory = Path(parent) / "bundle"
        directory.mkdir()
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            unpack(archive, directory)
        yield directory
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _prune(newest: Path, keep: int) -> None:
    others = [p for p in newest.parent.iterdir() if p.is_dir() and not p.name.startswith(".") and p != newest]
    others.sort(key=_last_used, reverse=True)
    for old in others[max(keep - 1, 0) :]:
        lock = lock_of(old)
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # a process has it loaded
        else:
            # Renamed first: nobody can find a directory that is half removed.
            trash = old.with_name(f".trash-{old.name}-{os.getpid()}-{time.monotonic_ns()}")
            try:
                old.rename(trash)
            except FileNotFoundError:
                continue
            shutil.rmtree(trash, ignore_errors=True)
            lock.unlink(missing_ok=True)
        finally:
            os.close(fd)


def _last_used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
