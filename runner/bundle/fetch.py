"""A version's files in this node's cache: fetched on first use, the last few kept."""

from __future__ import annotations

import gzip
import io
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from runner.bundle import cache as directories
from runner.bundle import environment
from runner.bundle.archive import files_in, unpack
from runner.bundle.build import VERSION_DIGITS, digest, pack
from runner.bundle.wheels import MANIFEST, manifest_of
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


def fetch(version: str, *, storage: Store | None, cache: Path, sha256: str | None = None, keep: int = 8) -> Path:
    """The directory of a bundle version, from the cache or from `storage`, with its environment if it needs one.

    It appears whole or not at all, and only if its content has this `sha256` (the first digits are the version),
    which the database knows; a copy in the cache is held against it each time. Of the others the `keep` - 1 used
    last stay, and every one that is loaded somewhere (see `load`). `builtin` is a folder of this package and needs
    no storage. Raises SluiceError for a version that is not there or not what it says.
    """
    if version == BUILTIN:
        return Path(__file__).parent / "builtin"
    if not re.fullmatch(rf"[0-9a-f]{{{VERSION_DIGITS}}}", version):
        raise UsageError(f"bundle version {version!r} is not {VERSION_DIGITS} hex digits")
    expected = sha256 or version
    target = cache.resolve() / version
    cache.mkdir(parents=True, exist_ok=True)
    if target.is_dir() and not _digest(target).startswith(expected):
        directories.remove_unused(target)  # damaged on this disk; one that is loaded had been read before
    if not target.is_dir():
        if storage is None:
            raise SluiceError(f"bundle {version} is not in the cache {cache} and no storage is known")
        _unpack(expected, storage.get(key_of(version)), storage.url_of(key_of(version)), target)
    directories.used(target)
    directories.prune(target, keep)
    manifest = manifest_of(target)
    if manifest is not None:
        store = _needed(storage, version)
        environment.ensure(manifest, target.parent / environment.FOLDER, lambda w: store.get(w.key), keep=keep)
    return target


def content(sha256: str, *, storage: Store) -> dict[str, bytes]:
    """The files of a version as it is stored, by path. Raises SluiceError for what is not there or was changed."""
    key = key_of(sha256[:VERSION_DIGITS])
    return files_of(_checked(sha256, storage.get(key), storage.url_of(key)))


def files_of(tar: bytes) -> dict[str, bytes]:
    """The files in a tar, by path."""
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
        return files_in(archive)


def _needed(storage: Store | None, version: str) -> Store:
    if storage is None:
        raise SluiceError(f"bundle {version} has packages of its own and no storage is known")
    return storage


def _digest(directory: Path) -> str:
    manifest = directory / MANIFEST
    try:
        return digest(pack(directory, manifest.read_bytes() if manifest.exists() else None))
    except (OSError, UsageError):  # unreadable, or something that no bundle can hold
        return ""


def _checked(expected: str, data: bytes, url: str) -> bytes:
    try:
        tar = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as e:
        raise SluiceError(f"bundle {url} is damaged: {e}", "push it again") from None
    if not digest(tar).startswith(expected):
        raise SluiceError(
            f"bundle {url} holds other content than was published: its sha256 is {digest(tar)}, not {expected}",
            "it was changed or damaged after publishing; push it again",
        )
    return tar


def _unpack(expected: str, data: bytes, url: str, target: Path) -> None:
    tar = _checked(expected, data, url)
    try:
        with unpacked(tar, beside=target) as directory:
            try:
                directory.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was first: the same content
                    raise
    except tarfile.TarError as e:
        raise SluiceError(f"bundle {url} cannot be unpacked: {e}", "push it again") from None


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
