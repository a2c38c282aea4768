"""Validate, upload, make active: pushing pipeline code without restarting anything."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.authoring.spec import DagSpec
from runner.bundle.build import Archive, build
from runner.bundle.fetch import Store, key_of, unpacked
from runner.bundle.load import BundleError
from runner.bundle.validate import validate

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Published(NamedTuple):
    """A version that is active now. `uploaded` is False if the archive was there already."""

    name: str
    version: str
    url: str
    size: int
    specs: list[DagSpec]
    uploaded: bool


def publish(
    directory: Path, *, storage: Store, connection: Connection, who: str, timeout_seconds: float = 60.0
) -> Published:
    """Make a directory of pipelines the active version of the bundle named like the directory.

    In the caller's transaction: it is active when that commits. Publishing the same content again changes nothing.
    Raises BundleError (nothing uploaded, nothing changed) if it has problems.
    """
    from runner.state.bundles import register_and_activate  # a task's process does without the database layer

    archive = build(directory)
    specs = check(archive, timeout_seconds=timeout_seconds)
    key = key_of(archive.version)
    uploaded = not storage.exists(key)
    if uploaded:
        storage.put(key, archive.data)
    url = storage.url_of(key)
    size = len(archive.data)
    register_and_activate(
        connection, version=archive.version, name=archive.name, url=url, size=size, specs=specs, who=who
    )
    return Published(archive.name, archive.version, url, size, specs, uploaded)


def check(archive: Archive, *, timeout_seconds: float = 60.0) -> list[DagSpec]:
    """Validate what is in the archive, not the directory: a file that was left out is missed now."""
    with unpacked(gzip.decompress(archive.data)) as directory:
        try:
            return validate(directory, timeout_seconds=timeout_seconds)
        except BundleError as e:
            raise BundleError(archive.name, e.problems) from None
