"""A directory of pipelines as one archive whose name is its content."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from runner.settings import UsageError

LIMIT = 200 * 1024 * 1024  # bytes, unpacked; pipelines are code, data belongs into storage


class Archive(NamedTuple):
    """A built bundle: `data` is a tar.gz, `version` names what is in it, `name` is the directory's."""

    name: str
    version: str
    data: bytes


def build(directory: Path) -> Archive:
    """Pack a directory; the same content gives the same version anywhere, whatever its times and owners.

    Left out: hidden files and folders, `__pycache__`, compiled files. Raises UsageError for something that is no
    directory, for links, and above 200 MiB.
    """
    directory = directory.resolve()
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
            info = tarfile.TarInfo(path.relative_to(directory).as_posix())
            info.size = len(data)
            info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(data))  # TarInfo: time, user and group are 0 unless set
    content = buffer.getvalue()
    return Archive(directory.name, version_of(content), gzip.compress(content, mtime=0))


def version_of(tar: bytes) -> str:
    """The version of an unpacked tar. Not of the tar.gz: two zlibs compress the same content differently."""
    return hashlib.sha256(tar).hexdigest()[:16]


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
