"""Validate, upload, make active: pushing pipeline code without restarting anything."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from runner.authoring.spec import DagSpec
from runner.bundle import environment
from runner.bundle.build import Archive, build
from runner.bundle.fetch import Store, key_of, unpacked
from runner.bundle.problem import BundleError, Problem
from runner.bundle.validate import FILE_SECONDS, IMPORT_ERROR, Known, validate
from runner.bundle.wheels import Wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection


class Published(NamedTuple):
    """A version that is active now. `uploaded` is False if the archive was there already."""

    name: str
    version: str
    url: str
    size: int
    specs: list[DagSpec]
    uploaded: bool


class Prepared(NamedTuple):
    """A valid bundle, ready to be uploaded: `get` brings the content of its wheels."""

    archive: Archive
    specs: list[DagSpec]
    wheels: tuple[Wheel, ...]
    get: Callable[[Wheel], bytes]


def publish(
    directory: Path, *, storage: Store, connection: Connection, who: str, timeout_seconds: float = FILE_SECONDS
) -> Published:
    """Make a directory of pipelines the active version of the bundle named like the directory.

    In the caller's transaction: it is active when that commits. Publishing the same content again changes nothing.
    Raises BundleError (nothing uploaded, nothing changed) if it has problems.
    """
    return upload(prepare(directory, timeout_seconds=timeout_seconds), storage=storage, connection=connection, who=who)


def prepare(
    directory: Path,
    *,
    architectures: Sequence[str] = (),
    known: Known | None = None,
    timeout_seconds: float = FILE_SECONDS,
) -> Prepared:
    """Pack a directory with the wheels it needs and validate it; nothing leaves this machine.

    `architectures` are those of the machines that will run it, `known` what their environment has
    (None: a task that needs something else is not noticed). Raises BundleError with all problems.
    """
    from runner.bundle import requirements  # most bundles have none

    directory = directory.resolve()
    try:
        lock = requirements.read(directory)
    except BundleError as e:
        # What else is wrong is told with it; what cannot be imported for lack of these packages is not.
        raise BundleError(directory, e.problems + _others(build(directory), known, timeout_seconds)) from None
    if lock is None:
        archive = build(directory)
        return Prepared(archive, check(archive, known, timeout_seconds=timeout_seconds), (), _no_wheel)
    from runner.bundle.collect import cache_directory, collect

    cache = cache_directory()
    found = collect(lock, cache, architectures)
    archive = build(directory, found.all.to_bytes())
    made = environment.ensure(found.here, cache / "environments", found.get)
    python = str(environment.python_of(made))
    specs = check(archive, known, timeout_seconds=timeout_seconds, python=python)
    return Prepared(archive, specs, found.all.wheels, found.get)


def upload(bundle: Prepared, *, storage: Store, connection: Connection, who: str) -> Published:
    """Store a bundle and its wheels and make it active when the caller's transaction commits.

    The wheels come first and the row last: a version that is listed can be fetched.
    """
    from runner.state.bundles import register_and_activate  # a task's process does without the database layer

    archive = bundle.archive
    for wheel in bundle.wheels:
        if not storage.exists(wheel.key):
            storage.put(wheel.key, bundle.get(wheel))
    key = key_of(archive.version)
    uploaded = not storage.exists(key)
    if uploaded:
        storage.put(key, archive.data)
    url = storage.url_of(key)
    size = len(archive.data)
    register_and_activate(
        connection,
        version=archive.version,
        name=archive.name,
        url=url,
        size=size,
        specs=bundle.specs,
        who=who,
        sha256=archive.sha256,
    )
    return Published(archive.name, archive.version, url, size, bundle.specs, uploaded)


def check(
    archive: Archive,
    known: Known | None = None,
    *,
    timeout_seconds: float = FILE_SECONDS,
    python: str | None = None,
) -> list[DagSpec]:
    """Validate what is in the archive, not the directory: a file that was left out is missed now."""
    with unpacked(gzip.decompress(archive.data)) as directory:
        try:
            return validate(directory, timeout_seconds=timeout_seconds, python=python, known=known)
        except BundleError as e:
            raise BundleError(archive.name, e.problems) from None


def _others(archive: Archive, known: Known | None, timeout_seconds: float) -> list[Problem]:
    try:
        check(archive, known, timeout_seconds=timeout_seconds)
    except BundleError as e:
        return [p for p in e.problems if not p.what.startswith(IMPORT_ERROR)]
    return []


def _no_wheel(wheel: Wheel) -> bytes:
    raise KeyError(wheel.file)
