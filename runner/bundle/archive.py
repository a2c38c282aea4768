"""Unpacking an archive that came over the network: it may only make files and directories below the target."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath


def unpack(tar: tarfile.TarFile, target: Path) -> None:
    """Extract regular files and directories. Raises tarfile.TarError, before anything is written, for anything else.

    Stricter than tarfile's own `data` filter, which Python has only since 3.11.4: no links at all.
    """
    members = tar.getmembers()
    for member in members:
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()):
            raise tarfile.ExtractError(f"{member.name!r} is neither a file nor a directory")
        if path.is_absolute() or ".." in path.parts:
            raise tarfile.ExtractError(f"{member.name!r} is outside the archive")
    for member in members:
        # One by one: extractall() would restore owners and mode bits.
        destination = target / member.name
        if member.isdir():
            destination.mkdir(parents=True, exist_ok=True)
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        if source is None:
            raise tarfile.ExtractError(f"{member.name!r} has no content")
        with source, destination.open("xb") as out:
            while block := source.read(1 << 20):
                out.write(block)
        destination.chmod(0o755 if member.mode & 0o100 else 0o644)


def files_in(tar: tarfile.TarFile) -> dict[str, bytes]:
    """The content of every regular file, by path."""
    out = {}
    for member in tar.getmembers():
        source = tar.extractfile(member) if member.isfile() else None
        if source is not None:
            with source:
                out[member.name] = source.read()
    return out
