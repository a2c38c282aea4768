"""A directory of pipelines as one archive whose name is its content."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runner.bundle.wheels import MANIFEST
from runner.settings import UsageError

VERSION_DIGITS = 16
LIMIT = 200 * 1024 * 1024  # bytes, unpacked; pipelines are code, data belongs into storage


class Archive(NamedTuple):
    """A built bundle: `data` is a tar.gz, `sha256` of the tar in it, whose first 16 digits are the `version`."""

    name: str
    sha256: str
    data: bytes

    @property
    def version(self) -> str:
        return self.sha256[:VERSION_DIGITS]


def build(directory: Path, manifest: bytes | None = None) -> Archive:
    """Pack a directory; the same content gives the same version anywhere, whatever its times and owners.

    `manifest` lists the wheels that go with it. Left out: hidden files and folders, `__pycache__`, compiled files.
    Raises UsageError for something that is no directory, for links, and above 200 MiB.
    """
    directory = directory.resolve()
    content = pack(directory, manifest)
    return Archive(directory.name, digest(content), gzip.compress(content, mtime=0))


def pack(directory: Path, manifest: bytes | None = None) -> bytes:
    """The tar of a bundle. One that was unpacked gives the same bytes again."""
    if not directory.is_dir():
        raise UsageError(f"bundle {directory} is not a directory")
    buffer = io.BytesIO()
    size = 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _files(directory):
            data = path.read_bytes()
            size += len(data)
            if size > LIMIT:
                raise UsageError(
                    f"bundle {directory} is larger than {LIMIT >> 20} MiB (at {path.relative_to(directory)})",
                    "keep data in storage, not beside the pipelines",
                )
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            _add(tar, path.relative_to(directory).as_posix(), data, mode)
        if manifest is not None:
            _add(tar, MANIFEST, manifest, 0o644)
    return buffer.getvalue()


def digest(tar: bytes) -> str:
    """The sha256 of a tar. Not of the tar.gz: two zlibs compress the same content differently."""
    return hashlib.sha256(tar).hexdigest()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)  # time, user and group are 0 unless set
    info.size = len(data)
    info.mode = mode
    tar.addfile(info, io.BytesIO(data))


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir(), key=lambda p: p.name):
        if path.name.startswith(".") or path.name == "__pycache__" or path.suffix in (".pyc", ".pyo"):
            continue
        if path.is_symlink():
            raise UsageError(f"bundle: {path} is a link", "a bundle must hold everything itself: put a copy there")
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path
