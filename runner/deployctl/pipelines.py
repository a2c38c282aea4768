"""The client's part for pipeline code: versions of bundles in a fleet, and which of them is active."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from runner.authoring.spec import DagSpec
from runner.bundle.compare import Changes, Content, compare
from runner.bundle.fetch import content, files_of, key_of
from runner.bundle.publish import Prepared, Published, prepare, upload
from runner.bundle.validate import Known
from runner.bundle.wheels import MANIFEST, Manifest
from runner.settings import RefusedError, SluiceError, UsageError
from runner.state import bundles, queries
from runner.state.bundles import BundleRow, DeployRow
from runner.state.views import DagRow
from runner.storage import Storage


@dataclass(frozen=True)
class Push:
    """A push, done or tried: the version before, the version after, and what changes between them."""

    name: str
    version: str
    before: str | None
    specs: list[DagSpec]
    size: int
    url: str
    changes: Changes | None = None  # None where it was done and not tried


@dataclass(frozen=True)
class Detail:
    """A version with what is in it. `packages` by name: their version."""

    bundle: BundleRow
    specs: list[DagSpec]
    packages: dict[str, str]
    versions: list[BundleRow]


class Pipelines:
    """The bundles of one environment, by its database and its artifacts.

    Names and versions are checked here; every method raises UsageError for one that is not known.
    """

    def __init__(self, engine: Engine, storage: Storage) -> None:
        self._engine = engine
        self._storage = storage

    def push(self, directory: Path, *, architectures: Sequence[str] = (), who: str) -> Push:
        """Validate a directory, upload it and make it active. Raises BundleError with all that is wrong."""
        ready = prepare(directory, architectures=architectures, known=self._known())
        with self._engine.begin() as c:
            before = self._before(c, ready)
            done: Published = upload(ready, storage=self._storage, connection=c, who=who)
        return Push(done.name, done.version, before, done.specs, done.size, done.url)

    def try_push(self, directory: Path, *, architectures: Sequence[str] = ()) -> Push:
        """Everything of a push but the change, with what would change."""
        ready = prepare(directory, architectures=architectures, known=self._known())
        archive = ready.archive
        with self._engine.connect() as c:
            before = self._before(c, ready)
            old = self._content(c, before) if before else Content()
        new = Content(files_of(gzip.decompress(archive.data)), ready.specs)
        url = self._storage.url_of(key_of(archive.version))
        return Push(
            archive.name, archive.version, before, ready.specs, len(archive.data), url, changes=compare(old, new)
        )

    def dags(self) -> list[DagRow]:
        """Every DAG and the version that its new runs take."""
        with self._engine.connect() as c:
            return queries.dags(c, limit=100_000)

    def show(self, what: str | None) -> Detail:
        """A version, or the active version of a bundle."""
        with self._engine.connect() as c:
            active = bundles.active(c)
            row = bundles.find(c, active.get(what or "", what) if what else active[self._only(active)])
            files = content(row.sha256, storage=self._storage) if row.url else {}
            data = files.get(MANIFEST)
            packages = {w.name: w.version for w in Manifest.from_bytes(data).wheels} if data else {}
            return Detail(row, bundles.specs(c, row.version), packages, bundles.versions(c, row.name))

    def diff(self, before: str | None, after: str | None, name: str | None) -> tuple[BundleRow, BundleRow, Changes]:
        """What differs: of two versions, of one and the active one, or of the active one and what it replaced."""
        with self._engine.connect() as c:
            old = bundles.find(c, before) if before else None
            if old is None:
                name = self._named(c, name)
                current = bundles.active(c)[name]
                replaced = bundles.previous(c, name, current)
                if replaced is None:
                    raise RefusedError(f"bundle {name} has no version before {current}", "name two versions")
                old, after = bundles.find(c, replaced), current
            if after is None:
                after = bundles.active_version(c, old.name)
                if after is None:
                    raise UsageError(f"bundle {old.name} has no active version", "name two versions")
            new = bundles.find(c, after)
            return old, new, compare(self._content(c, old.version), self._content(c, new.version))

    def history(self, name: str | None, limit: int) -> list[DeployRow]:
        """Which version was active when, newest first."""
        with self._engine.connect() as c:
            if name is not None:
                bundles.versions(c, name, 1)
            return bundles.history(c, name, limit)

    def rollback(self, name: str | None, to: str | None, *, who: str) -> tuple[str, str, str]:
        """Make an earlier version active again; returns (bundle, before, after).

        Raises RefusedError if there is nothing to go back to, or its archive is gone.
        """
        with self._engine.begin() as c:
            if name is None and to is not None:
                name = bundles.find(c, to).name
            name = self._named(c, name)
            before, after = bundles.rollback(c, name, to=to, who=who)
            row = bundles.find(c, after)
            if row.url and not self._storage.exists(key_of(row.version)):
                raise RefusedError(f"the archive of {row.version} is gone: {row.url}", "push that code again")
        return name, before, after

    def _known(self) -> Known:
        with self._engine.connect() as c:
            return Known(*bundles.known(c))

    @staticmethod
    def _before(c: Connection, ready: Prepared) -> str | None:
        bundles.check_free(c, ready.archive.name, [s.dag_id for s in ready.specs])
        return bundles.active_version(c, ready.archive.name)

    def _content(self, c: Connection, version: str) -> Content:
        row = bundles.find(c, version)
        if not row.url:
            raise UsageError(f"version {version} ships with the release itself and cannot be compared")
        try:
            files = content(row.sha256 or row.version, storage=self._storage)
        except SluiceError as e:
            raise RefusedError(f"{row.name} {row.version} cannot be compared: {e.message}", e.hint) from None
        return Content(files, bundles.specs(c, row.version))

    def _named(self, c: Connection, name: str | None) -> str:
        active = bundles.active(c)
        if name is None:
            return self._only(active)
        if name not in active:
            raise UsageError(f"no bundle {name!r}", f"known: {', '.join(active) or 'none yet'}")
        return name

    @staticmethod
    def _only(active: dict[str, str]) -> str:
        if not active:
            raise UsageError("no bundle is published yet", "`deployctl dags push DIR` publishes one")
        if len(active) > 1:
            raise UsageError("there is more than one bundle: which?", f"one of {', '.join(active)}")
        return next(iter(active))
